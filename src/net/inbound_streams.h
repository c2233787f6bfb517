// The peer streams that a server has open, and how their frames get to its handler.
//
// gRPC's threads check the records and put the frames together; a finished frame goes through a
// bounded queue, backwards first, to the handler's threads, so that decoding one frame holds up
// neither the next one nor a probe. Thread-safe; shared by the streams.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/frame_assembly.h"
#include "net/stream_opening.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/ports/links.h"

namespace tessera::net {

class InboundStream;
using InboundStreamPtr = std::shared_ptr<InboundStream>;
using PeerReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// A reactor that refuses its call.
PeerReactor* refuse_stream(const Status& status);

class InboundStreams : public std::enable_shared_from_this<InboundStreams> {
 public:
  struct Limits {
    size_t max_frame_bytes = 0;
    size_t frame_memory_bytes = 0;  // of frames on their way, together
    size_t max_streams = 0;
    size_t handler_threads = 0;
  };
  // A process has one stream to a peer; the second is for one that was restarted while its old
  // connection is not known to be dead yet. A third ends the first.
  static constexpr size_t kMaxStreamsPerNode = 2;
  static constexpr size_t kMaxHandedFrames = 256;

  InboundStreams(Limits limits, ports::PeerHandler* handler);
  ~InboundStreams();

  // Streams of an older generation are refused: they were checked for another run.
  uint64_t generation() const;
  PeerReactor* open(AcceptedOpening opening, uint64_t generation);
  // Ends all streams; a new generation begins.
  void end_all(const Status& why);
  // The same for good. No handler is called after it.
  void close();

  // By the streams.
  void hand_over(const InboundStreamPtr& stream, uint64_t id, ArrivingFrame frame);
  void remove(InboundStream* stream);
  // What its senders gave up, of all streams.
  void drop_late(TimeMs now_ms);
  const std::shared_ptr<FrameBudget>& budget() const { return budget_; }
  const Limits& limits() const { return limits_; }

 private:
  struct HandedFrame {
    InboundStreamPtr stream;
    uint64_t id = 0;
    ArrivingFrame frame;
  };
  void serve();

  const Limits limits_;
  ports::PeerHandler* const handler_;
  const std::shared_ptr<FrameBudget> budget_;
  BoundedQueue<HandedFrame> handed_{kMaxHandedFrames};
  mutable std::mutex mutex_;
  uint64_t generation_ = 0;
  bool closed_ = false;
  std::list<InboundStreamPtr> streams_;  // oldest first
  std::vector<std::jthread> threads_;
};

}  // namespace tessera::net
