#include "net/peer_stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <utility>

#include "net/channel.h"
#include "net/client_channel.h"
#include "net/stream_opening.h"
#include "net/wire.h"
#include "tessera/core/frame.h"

namespace tessera::net {
namespace {

grpc::Slice slice_of(const OutgoingChunk& chunk) {
  if (chunk.size == 0) return {};
  auto* owner = new std::shared_ptr<const std::string>(chunk.frame);
  return grpc::Slice(
      const_cast<char*>((*owner)->data()) + chunk.offset, chunk.size,
      [](void* held) { delete static_cast<std::shared_ptr<const std::string>*>(held); }, owner);
}

}  // namespace

core::Admission admission_of(const Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
      return core::Admission::kUnauthenticated;
    case absl::StatusCode::kResourceExhausted:
      return core::Admission::kFull;
    case absl::StatusCode::kFailedPrecondition:
      return core::Admission::kNotReady;
    case absl::StatusCode::kInvalidArgument:
      return core::Admission::kCorrupt;
    default:
      return core::Admission::kUnreachable;
  }
}

// One stream, from its opening to its end. Owns itself until OnDone. The read under way and one
// hold keep it alive for writers: the hold goes when reading has ended and nobody writes.
class PeerStream::Attempt final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Attempt(std::shared_ptr<PeerStream> stream)
      : stream_(std::move(stream)),
        opening_(*stream_->options_.signer, stream_->options_.receiver, stream_->options_.run_id) {}

  void start() {
    opening_.add_metadata(&context_);
    stream_->stub_->PrepareBidiStreamingCall(&context_, kExchangeMethod, grpc::StubOptions(), this);
    AddHold();
    StartRead(&incoming_);
    StartCall();
  }
  void cancel() { context_.TryCancel(); }
  // By the one who has the right to write.
  void write(const OutgoingChunk& chunk) {
    outgoing_ = sealer_->seal(chunk.record, slice_of(chunk));
    StartWrite(&outgoing_);
  }

  void OnReadInitialMetadataDone(bool ok) override {
    if (!ok) return;  // OnReadDone and OnDone tell the rest
    auto keys = opening_.finish(context_);
    if (!keys.ok()) return give_up(keys.status());
    sealer_.emplace(keys->frames);
    opener_.emplace(keys->answers);
    stream_->options_.opened(context_.peer());
    stream_->on_open(this);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return stream_->on_read_end(this);
    if (Status problem = take_answer(); !problem.ok()) {
      give_up(problem);
      return stream_->on_read_end(this);
    }
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override { stream_->on_written(this, ok); }

  void OnDone(const grpc::Status& status) override {
    Status why = from_grpc(status);
    // What this side found wrong, unless the other side had said what it finds wrong before.
    const bool by_us = why.ok() || absl::IsCancelled(why);
    {
      std::lock_guard lock(problem_mutex_);
      if (by_us && !problem_.ok()) why = problem_;
    }
    if (why.ok()) why = unavailable("the peer closed the stream");
    const std::shared_ptr<PeerStream> stream = std::move(stream_);
    stream->on_done(this, why);
  }

 private:
  void give_up(const Status& problem) {
    {
      std::lock_guard lock(problem_mutex_);
      if (problem_.ok()) problem_ = problem;
    }
    context_.TryCancel();
  }

  Status take_answer() {
    if (!stream_->is_open(this)) return unavailable("an answer came before the stream was open");
    TESSERA_ASSIGN_OR_RETURN(const ReceivedRecord received, opener_->open(incoming_));
    const Record& record = received.record;
    // Unreachable is what senders find; nobody sends it.
    if (record.kind != RecordKind::kAdmission || received.content_bytes > 0 ||
        record.position >= static_cast<uint64_t>(core::Admission::kUnreachable)) {
      return invalid_argument("a record of the peer stream is no admission; upgrade this program "
                              "if the peer is newer");
    }
    stream_->complete(record.id, static_cast<core::Admission>(record.position));
    return ok_status();
  }

  std::shared_ptr<PeerStream> stream_;
  const CallerOpening opening_;
  grpc::ClientContext context_;  // holds the channel, which may not end in a callback
  std::optional<RecordSealer> sealer_;
  std::optional<RecordOpener> opener_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  std::mutex problem_mutex_;
  Status problem_;
};

PeerStream::PeerStream(PeerStreamOptions options)
    : options_(std::move(options)),
      channel_(open_channel(options_.address, kMaxPeerMessageBytes)),
      stub_(std::make_unique<grpc::GenericStub>(channel_)),
      queue_(options_.queue) {}

PeerStream::~PeerStream() { TESSERA_CHECK(closed_); }

size_t PeerStream::under_way() const {
  std::lock_guard lock(mutex_);
  return waiting_.size();
}

void PeerStream::send(std::string frame, uint32_t patience_ms, Done done) {
  if (frame.size() > options_.max_frame_bytes) {
    return refuse_soon(core::Admission::kCorrupt, std::move(done));
  }
  const bool backward = core::is_backward(frame);
  std::unique_lock lock(mutex_);
  QueuedFrame queued;
  queued.id = ++last_id_;
  queued.bytes = std::make_shared<const std::string>(std::move(frame));
  queued.sent_at_ms = static_cast<uint64_t>(monotonic_now_ms());
  queued.patience_ms = patience_ms;
  if (closed_ || !queue_.push(std::move(queued), backward)) {
    const auto admission = closed_ ? core::Admission::kUnreachable : core::Admission::kFull;
    lock.unlock();
    return refuse_soon(admission, std::move(done));
  }
  const uint64_t id = last_id_;
  Waiting& waiting = waiting_[id];
  waiting.done = std::move(done);
  waiting.deadline = std::make_unique<grpc::Alarm>();
  waiting.deadline->Set(std::chrono::system_clock::now() + std::chrono::milliseconds(patience_ms),
                        [self = shared_from_this(), id](bool fired) {
                          if (fired) self->complete(id, core::Admission::kUnreachable);
                        });
  if (attempt_ == nullptr) open_stream();
  write_more(std::move(lock));
}

void PeerStream::refuse_soon(core::Admission admission, Done done) {
  {
    std::lock_guard lock(mutex_);
    ++callbacks_;
  }
  run_soon([self = shared_from_this(), admission, done = std::move(done)] {
    self->call(done, admission);
  });
}

// `callbacks_` counts it already.
void PeerStream::call(const Done& done, core::Admission admission) {
  done(admission);
  std::lock_guard lock(mutex_);
  --callbacks_;
  idle_.notify_all();
}

void PeerStream::complete(uint64_t id, core::Admission admission) {
  Waiting waiting;  // destroyed without the lock
  {
    std::lock_guard lock(mutex_);
    const auto found = waiting_.find(id);
    if (found == waiting_.end()) return;  // given up before
    waiting = std::move(found->second);
    waiting_.erase(found);
    // Refused or too late before the whole frame is sent: whoever is writing cancels it next.
    queue_.remove(id);
    ++callbacks_;
  }
  call(waiting.done, admission);
}

void PeerStream::open_stream() {
  attempt_ = new Attempt(shared_from_this());
  open_ = writing_ = read_ended_ = false;
  ++attempts_;
  attempt_->start();
}

PeerStream::Attempt* PeerStream::next_writer(OutgoingChunk* chunk) {
  if (!open_ || writing_ || read_ended_) return nullptr;
  std::optional<OutgoingChunk> next = queue_.next();
  if (!next) return nullptr;
  *chunk = *std::move(next);
  writing_ = true;
  return attempt_;
}

// Seals and writes without the lock: `writing_` gives the right to do so.
void PeerStream::write_more(std::unique_lock<std::mutex> lock) {
  OutgoingChunk chunk;
  Attempt* const attempt = next_writer(&chunk);
  lock.unlock();
  if (attempt != nullptr) attempt->write(chunk);
}

void PeerStream::on_open(Attempt* attempt) {
  std::unique_lock lock(mutex_);
  if (attempt_ != attempt) return;
  open_ = true;
  if (closed_) return attempt->cancel();
  write_more(std::move(lock));
}

bool PeerStream::is_open(const Attempt* attempt) const {
  std::lock_guard lock(mutex_);
  return attempt_ == attempt && open_;
}

void PeerStream::on_written(Attempt* attempt, bool ok) {
  std::unique_lock lock(mutex_);
  TESSERA_CHECK(attempt_ == attempt && writing_);
  writing_ = false;
  if (read_ended_) {
    lock.unlock();
    return attempt->RemoveHold();
  }
  if (ok) write_more(std::move(lock));  // else the read ends too
}

void PeerStream::on_read_end(Attempt* attempt) {
  {
    std::lock_guard lock(mutex_);
    TESSERA_CHECK(attempt_ == attempt);
    read_ended_ = true;
    if (writing_) return;  // on_written() does it
  }
  attempt->RemoveHold();
}

void PeerStream::on_done(Attempt* attempt, const Status& why) {
  std::map<uint64_t, Waiting> failed;
  bool was_open = false;
  {
    std::lock_guard lock(mutex_);
    TESSERA_CHECK(attempt_ == attempt);
    was_open = open_ && !closed_;
    attempt_ = nullptr;
    open_ = false;
    queue_.clear();
    failed.swap(waiting_);
    callbacks_ += failed.size();
  }
  delete attempt;  // while close() keeps the channel
  const core::Admission admission = admission_of(why);
  for (const auto& [id, waiting] : failed) call(waiting.done, admission);
  options_.ended(was_open, why);
  std::lock_guard lock(mutex_);
  --attempts_;
  idle_.notify_all();
}

void PeerStream::close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  if (attempt_ != nullptr) attempt_->cancel();
  idle_.wait(lock, [&] { return attempts_ == 0 && callbacks_ == 0; });
  lock.unlock();
  stub_.reset();
  channel_.reset();
}

}  // namespace tessera::net
