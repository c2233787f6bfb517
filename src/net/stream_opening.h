// How the two sides of a peer stream prove who they are and agree on its keys.
//
// The caller's metadata are `tessera-stream-bin` = encode(version u32, X25519 public key) and
// `tessera-auth-bin`, its signature over that (tessera/net/auth.h). The receiver's initial metadata
// are `tessera-stream-bin` in the same form and `tessera-answer-bin`, its signature over that and
// the caller's signature. Both X25519 keys are made for this stream only. The key of a direction is
// BLAKE2b-256, keyed with the X25519 secret, of encode("tessera stream 1", direction, the caller's
// signature, the receiver's `tessera-stream-bin`), and so is bound to both identities, the run and
// the method.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include <string>

#include "tessera/base/status.h"
#include "tessera/base/stream_crypto.h"
#include "tessera/net/auth.h"
#include "tessera/ports/links.h"

namespace tessera::net {

inline constexpr char kStreamMetadata[] = "tessera-stream-bin";
inline constexpr uint32_t kStreamVersion = 1;

struct StreamKeys {
  Digest frames;   // of what the caller sends
  Digest answers;  // of what the receiver sends
};

// The caller's side of one stream.
class CallerOpening {
 public:
  CallerOpening(RequestSigner& signer, const NodeId& receiver, const std::string& run_id);
  void add_metadata(grpc::ClientContext* context) const;
  // From the receiver's initial metadata. UNAUTHENTICATED if another node than the receiver made
  // them; INVALID_ARGUMENT if they can't be read.
  StatusOr<StreamKeys> finish(const grpc::ClientContext& context) const;

 private:
  const NodeId receiver_;
  KeyExchange exchange_;
  std::string opening_;
  AuthHeader header_;
};

struct AcceptedOpening {
  ports::Caller caller;
  StreamKeys keys;
};

// The receiver's side: checks the caller's metadata and adds the answer to the initial metadata.
StatusOr<AcceptedOpening> accept_opening(RequestVerifier& verifier, const KeyPair& key,
                                         grpc::ServerContextBase* context);

}  // namespace tessera::net
