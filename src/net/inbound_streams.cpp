#include "net/inbound_streams.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "net/wire.h"
#include "tessera/core/frame.h"

namespace tessera::net {
namespace {

constexpr std::chrono::milliseconds kQueueWait(1000);

Status shutting_down() { return unavailable("this server is shutting down; try again later"); }

class RefusedStream final : public PeerReactor {
 public:
  explicit RefusedStream(const Status& status) { Finish(to_grpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

PeerReactor* refuse_stream(const Status& status) { return new RefusedStream(status); }

// One inbound stream. It lives until gRPC's OnDone, and longer while a frame of it waits for its
// admission.
class InboundStream final : public PeerReactor, public std::enable_shared_from_this<InboundStream> {
 public:
  static constexpr size_t kMaxUnanswered = 1024;

  InboundStream(std::shared_ptr<InboundStreams> streams, AcceptedOpening opening)
      : caller_(std::move(opening.caller)),
        streams_(std::move(streams)),
        opener_(opening.keys.frames),
        assembly_(streams_->limits().max_frame_bytes, streams_->budget()),
        sealer_(opening.keys.answers) {}

  void start() {
    self_ = shared_from_this();
    StartSendInitialMetadata();
    StartRead(&incoming_);
  }
  const ports::Caller& caller() const { return caller_; }

  void finish(const Status& why) {
    std::lock_guard lock(mutex_);
    if (std::exchange(finished_, true)) return;
    Finish(to_grpc(why));
  }
  // Of a frame that was handed over.
  void answer_handed(uint64_t id, core::Admission admission) {
    {
      std::lock_guard lock(mutex_);
      --handed_;
    }
    answer(id, admission);
  }
  void answer(uint64_t id, core::Admission admission) {
    std::lock_guard lock(mutex_);
    if (finished_) return;
    answers_.push_back({.kind = RecordKind::kAdmission,
                        .id = id,
                        .position = static_cast<uint64_t>(admission)});
    write_next();
  }

  void drop_late(TimeMs now_ms) {
    std::lock_guard lock(assembly_mutex_);
    assembly_.drop_late(now_ms);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return finish(ok_status());
    if (Status problem = take(); !problem.ok()) return finish(problem);
    incoming_.Clear();
    std::lock_guard lock(mutex_);
    if (!finished_) StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (ok) write_next();  // else the read ends too
  }
  void OnCancel() override { finish(Status(absl::StatusCode::kCancelled, "the peer went away")); }
  void OnDone() override {
    streams_->remove(this);
    const InboundStreamPtr last = std::move(self_);
  }

 private:
  Status take() {
    TESSERA_ASSIGN_OR_RETURN(ReceivedRecord received, opener_.open(incoming_));
    TESSERA_ASSIGN_OR_RETURN(FrameAssembly::Step step, assemble(std::move(received)));
    bool wanted = step.frame.has_value();
    {
      std::lock_guard lock(mutex_);
      if (answers_.size() >= kMaxUnanswered) {
        return error(absl::StatusCode::kResourceExhausted,
                     "{} admissions of this stream were not read; read them", answers_.size());
      }
      if (wanted && handed_ >= kMaxUnanswered) {
        step.refusal = core::Admission::kFull;
        wanted = false;
      }
      handed_ += wanted ? 1 : 0;
    }
    if (wanted) {
      streams_->hand_over(shared_from_this(), step.id, *std::move(step.frame));
    } else if (step.refusal) {
      answer(step.id, *step.refusal);
    }
    return ok_status();
  }

  StatusOr<FrameAssembly::Step> assemble(ReceivedRecord received) {
    const TimeMs now = monotonic_now_ms();
    auto step = [&] {
      std::lock_guard lock(assembly_mutex_);
      return assembly_.take(std::move(received), now);
    }();
    // Streams that stay silent keep what they have until somebody needs the room.
    if (step.ok() && step->refusal == core::Admission::kFull) streams_->drop_late(now);
    return step;
  }

  void write_next() {
    if (writing_ || finished_ || answers_.empty()) return;
    writing_ = true;
    outgoing_ = sealer_.seal(answers_.front(), {});
    answers_.pop_front();
    StartWrite(&outgoing_);
  }

  InboundStreamPtr self_;  // until OnDone
  const ports::Caller caller_;
  const std::shared_ptr<InboundStreams> streams_;
  // Reading: one record after the other, on gRPC's threads.
  RecordOpener opener_;
  std::mutex assembly_mutex_;
  FrameAssembly assembly_;
  grpc::ByteBuffer incoming_;
  // Writing.
  std::mutex mutex_;
  bool finished_ = false;
  bool writing_ = false;
  size_t handed_ = 0;  // frames whose admission the handler owes
  std::deque<Record> answers_;
  RecordSealer sealer_;
  grpc::ByteBuffer outgoing_;
};

InboundStreams::InboundStreams(Limits limits, ports::PeerHandler* handler)
    : limits_(limits),
      handler_(handler),
      budget_(std::make_shared<FrameBudget>(limits.frame_memory_bytes)) {
  for (size_t i = 0; i < limits_.handler_threads; ++i) {
    threads_.emplace_back([this] { serve(); });
  }
}

InboundStreams::~InboundStreams() { close(); }

uint64_t InboundStreams::generation() const {
  std::lock_guard lock(mutex_);
  return generation_;
}

PeerReactor* InboundStreams::open(AcceptedOpening opening, uint64_t generation) {
  auto stream = std::make_shared<InboundStream>(shared_from_this(), std::move(opening));
  InboundStreamPtr replaced;
  {
    std::lock_guard lock(mutex_);
    if (closed_ || generation != generation_) return refuse_stream(shutting_down());
    const auto of_node = [&](const InboundStreamPtr& other) {
      return other->caller().node == stream->caller().node;
    };
    const auto same = std::count_if(streams_.begin(), streams_.end(), of_node);
    if (static_cast<size_t>(same) >= kMaxStreamsPerNode) {
      replaced = *std::find_if(streams_.begin(), streams_.end(), of_node);
    } else if (streams_.size() >= limits_.max_streams) {
      return refuse_stream(error(absl::StatusCode::kResourceExhausted,
                                 "{} peers have streams here already; try another miner",
                                 streams_.size()));
    }
    if (replaced) streams_.remove(replaced);
    streams_.push_back(stream);
  }
  if (replaced) {
    replaced->finish(Status(absl::StatusCode::kAborted, "this node opened newer streams"));
  }
  stream->start();
  return stream.get();
}

void InboundStreams::end_all(const Status& why) {
  std::list<InboundStreamPtr> ended;
  {
    std::lock_guard lock(mutex_);
    ++generation_;
    ended = streams_;
  }
  for (const InboundStreamPtr& stream : ended) stream->finish(why);
}

void InboundStreams::drop_late(TimeMs now_ms) {
  std::list<InboundStreamPtr> all;
  {
    std::lock_guard lock(mutex_);
    all = streams_;
  }
  for (const InboundStreamPtr& stream : all) stream->drop_late(now_ms);
}

void InboundStreams::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  end_all(shutting_down());
  handed_.close();
  threads_.clear();  // joins
}

void InboundStreams::hand_over(const InboundStreamPtr& stream, uint64_t id, ArrivingFrame frame) {
  const bool backward = core::is_backward(frame.bytes);
  HandedFrame handed{stream, id, std::move(frame)};
  const PushResult result = backward ? handed_.push_urgent(std::move(handed))
                                     : handed_.push(std::move(handed));
  if (result == PushResult::kOk) return;
  stream->answer_handed(id, result == PushResult::kFull ? core::Admission::kFull
                                                        : core::Admission::kNotReady);
}

void InboundStreams::serve() {
  while (!handed_.closed()) {
    std::optional<HandedFrame> handed = handed_.pop(kQueueWait);
    if (!handed || handed_.closed()) continue;
    handler_->on_frame(handed->stream->caller(), std::move(handed->frame.bytes),
                       [stream = handed->stream, id = handed->id](core::Admission admission) {
                         stream->answer_handed(id, admission);
                       });
  }
}

void InboundStreams::remove(InboundStream* stream) {
  InboundStreamPtr last;  // destroyed without the lock
  std::lock_guard lock(mutex_);
  const auto found = std::find_if(streams_.begin(), streams_.end(),
                                  [&](const InboundStreamPtr& entry) { return entry.get() == stream; });
  if (found == streams_.end()) return;
  last = std::move(*found);
  streams_.erase(found);
}

}  // namespace tessera::net
