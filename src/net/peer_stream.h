// The frames to one peer: a queue, the stream that carries them while there is one, and who waits
// for which admission.
//
// The stream is opened by the first frame and stays; when it breaks, everything that waits on it
// fails at once, and the next frame opens another. Each frame has its own deadline: a slow one does
// not end the stream.
//
// send() may be used by any thread and never blocks; `done` runs once, on one of gRPC's threads or
// in close(). close() belongs to the owner's thread and must come before the end; it never runs in
// a callback.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "net/send_queue.h"
#include "tessera/base/clock.h"
#include "tessera/base/status.h"
#include "tessera/core/messages.h"
#include "tessera/net/auth.h"

namespace tessera::net {

struct PeerStreamOptions {
  std::string address;
  NodeId receiver;
  std::string run_id;
  std::shared_ptr<RequestSigner> signer;
  size_t max_frame_bytes = 0;
  SendQueue::Limits queue;
  // Both on gRPC's threads. `remote` is gRPC's name of the address it is connected to.
  std::function<void(const std::string& remote)> opened;
  // `was_open`: it had been opened, and this side did not close it.
  std::function<void(bool was_open, const Status& why)> ended;
};

class PeerStream : public std::enable_shared_from_this<PeerStream> {
 public:
  using Done = std::function<void(core::Admission)>;

  explicit PeerStream(PeerStreamOptions options);
  ~PeerStream();
  PeerStream(const PeerStream&) = delete;
  PeerStream& operator=(const PeerStream&) = delete;

  void send(std::string frame, uint32_t patience_ms, Done done);
  // Frames without an admission.
  size_t under_way() const;
  // Fails everything, ends the stream and waits for its callbacks.
  void close();

 private:
  class Attempt;
  struct Waiting {
    Done done;
    std::unique_ptr<grpc::Alarm> deadline;
  };

  void refuse_soon(core::Admission admission, Done done);
  void open_stream();                             // with the lock
  Attempt* next_writer(OutgoingChunk* chunk);     // with the lock; null: nothing to write now
  void write_more(std::unique_lock<std::mutex> lock);
  void complete(uint64_t id, core::Admission admission);
  void call(const Done& done, core::Admission admission);

  // Of the stream under way.
  void on_open(Attempt* attempt);
  bool is_open(const Attempt* attempt) const;
  void on_written(Attempt* attempt, bool ok);
  void on_read_end(Attempt* attempt);
  void on_done(Attempt* attempt, const Status& why);

  const PeerStreamOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<grpc::GenericStub> stub_;

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  bool closed_ = false;
  uint64_t last_id_ = 0;
  SendQueue queue_;
  std::map<uint64_t, Waiting> waiting_;
  Attempt* attempt_ = nullptr;  // owns itself until its OnDone
  bool open_ = false;           // of attempt_: both sides have the keys
  bool writing_ = false;        // of attempt_: somebody seals or writes a record
  bool read_ended_ = false;     // of attempt_: nothing more will be written
  size_t attempts_ = 0;         // not deleted yet
  size_t callbacks_ = 0;        // of users, running or to be run
};

// What a frame's sender learns when its stream can't be had, or ends.
core::Admission admission_of(const Status& status);

}  // namespace tessera::net
