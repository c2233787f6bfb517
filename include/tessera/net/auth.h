// Who sent a request: an Ed25519 signature over everything that gives the request its meaning.
//
// Every RPC but Hello carries the metadata `tessera-auth-bin` = encode(AuthHeader). Its signature
// covers encode() of
//   "tessera rpc 1", full method name, receiver's id, run id, sender's id, stream, session,
//   sequence, unix_ms, BLAKE2b-256 of the exact request body.
// The receiver knows its own id and run, so a request for another node or another run can't be used
// here. It refuses one that is too old or too new by its clock, and one whose (sender, stream,
// sequence) it has seen.
//
// A request that carries blobs (PutBlobs) is signed over the digest of the list of their digests instead of the body's, which
// the metadata `tessera-contents-bin` tells: the signature is checked before a byte of the body is touched, and whoever stores
// the blobs compares. The answer to a request for blobs (GetBlobs) is signed over the states of the blobs; their contents have
// the digests that were asked for.
//
// The answer to it carries `tessera-answer-bin`: the receiver's signature over "tessera answer 1",
// full method name, the request's signature, BLAKE2b-256 of the exact answer body. So nobody on the
// way can answer for the receiver.
#pragma once

#include <bitset>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/clock.h"
#include "tessera/base/crypto.h"
#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::net {

inline constexpr char kAuthMetadata[] = "tessera-auth-bin";
inline constexpr char kAnswerMetadata[] = "tessera-answer-bin";
inline constexpr char kContentsMetadata[] = "tessera-contents-bin";
inline constexpr size_t kMaxSessionBytes = 16;
inline constexpr size_t kMaxRunIdBytes = 16;

struct AuthHeader {
  NodeId node;          // the sender
  uint64_t stream = 0;  // random, one per RequestSigner: a restarted sender, or a second process
                        // with the same key, counts for itself
  std::string
      session;  // as given at registration, at most kMaxSessionBytes; empty where none is needed
  uint64_t sequence = 0;  // within the stream and to this receiver, from 1
  int64_t unix_ms = 0;    // the sender's clock
  Signature signature{};
  template <class A>
  void fields(A& a) {
    a("node", node)("stream", stream)("session", session)("sequence", sequence)("unix_ms", unix_ms)(
        "signature", signature);
  }
};

// The bytes under the signatures.
std::string signed_request_bytes(const AuthHeader& header, std::string_view method,
                                 const NodeId& receiver, std::string_view run_id,
                                 const Digest& body);
std::string signed_answer_bytes(std::string_view method, const Signature& request,
                                const Digest& body);

using UnixClock = std::function<TimeMs()>;

// Signs requests for one key. All links of a process share one. Thread-safe.
class RequestSigner {
 public:
  explicit RequestSigner(const KeyPair& key, UnixClock clock = unix_now_ms);
  const NodeId& id() const { return key_.id(); }
  AuthHeader sign(std::string_view method, const NodeId& receiver, std::string_view run_id,
                  std::string_view session, const Digest& body);

 private:
  // More receivers than this begin a new stream, so the table stays small.
  static constexpr size_t kMaxReceivers = 65536;
  const KeyPair key_;
  const UnixClock clock_;
  std::mutex mutex_;
  uint64_t stream_;
  std::map<NodeId, uint64_t> last_sequence_;
};

// Which of the last kWidth sequence numbers of one stream were seen.
class ReplayWindow {
 public:
  static constexpr uint64_t kWidth = 1024;
  // False if `sequence` was accepted before, or is too far behind the highest to know.
  bool accept(uint64_t sequence);

 private:
  uint64_t highest_ = 0;
  std::bitset<kWidth> seen_;
};

struct AuthLimits {
  TimeMs max_age_ms = 10 * 60 * 1000;  // in either direction
  // Nodes remembered; over it the least recently heard is forgotten.
  size_t max_senders = 16384;
  UnixClock clock = unix_now_ms;
};

// The receiver's side. Thread-safe.
//
// Streams are of the senders' choice and keys cost nothing, so what is remembered could be flushed by
// whoever wants to replay something. Therefore a node has few streams, of which its own least recently
// used makes room; and of what is forgotten the time of the newest request stays: a stream that is not
// remembered is refused unless its request is newer. The time that all forgotten nodes share is never
// later than this side's clock, or senders with clocks in the future could lock out the others: only a
// request signed by a clock that is ahead of this one could be replayed after its node was forgotten.
class RequestVerifier {
 public:
  RequestVerifier(const NodeId& self, std::string run_id, AuthLimits limits);
  void set_run(std::string run_id);

  // UNAUTHENTICATED, saying what is wrong and how to mend it.
  StatusOr<AuthHeader> verify(std::string_view method, std::string_view header, const Digest& body);

  // Processes with one key whose requests come at the same time.
  static constexpr size_t kStreamsPerSender = 4;

 private:
  struct Stream {
    uint64_t id = 0;
    TimeMs newest_ms = 0;  // by the sender's clock
    ReplayWindow window;
  };
  struct Sender {
    NodeId node;
    TimeMs forgotten_ms = 0;      // the newest request of its forgotten streams
    std::vector<Stream> streams;  // most recently used first
    TimeMs newest_ms() const;
  };
  bool accept(const AuthHeader& header, TimeMs now);
  Sender* sender_of(const AuthHeader& header, TimeMs now);

  const NodeId self_;
  const AuthLimits limits_;
  std::mutex mutex_;
  std::string run_id_;
  std::list<Sender> senders_;  // most recently heard first
  std::map<NodeId, std::list<Sender>::iterator> by_node_;
  TimeMs forgotten_ms_ = 0;  // the newest request of forgotten senders
};

}  // namespace tessera::net
