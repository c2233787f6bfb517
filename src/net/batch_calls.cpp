#include "net/batch_calls.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tessera/base/crypto.h"

namespace tessera::net {
namespace {

// Later is better than not at all.
bool worth_another_try(const Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) ||
         absl::IsDeadlineExceeded(status);
}

struct Attempt {
  BatchCall call;
  uint32_t failures = 0;
  TimeMs not_before_ms = 0;
};

// Shared with the callbacks, which may outlive a moment of run_batch()'s end.
struct Inbox {
  struct Arrival {
    Attempt attempt;
    StatusOr<grpc::ByteBuffer> answer = absl::UnknownError("");
  };
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Arrival> arrived;
};

// Doubles with each failure; half of it is random, so that many clients of one server spread.
TimeMs backoff_ms(const RetryPolicy& policy, uint32_t failures) {
  const uint64_t doubled = uint64_t{policy.min_backoff_ms} << std::min(failures - 1, 20u);
  const uint64_t bounded = std::min<uint64_t>(doubled, policy.max_backoff_ms);
  return static_cast<TimeMs>(bounded / 2 + random_u64() % (bounded / 2 + 1));
}

class Batch {
 public:
  Batch(const RetryPolicy& policy, TimeMs deadline_ms,
        const std::function<std::optional<BatchCall>()>& next)
      : policy_(policy), deadline_ms_(deadline_ms), next_(next) {}

  Status run() {
    while (true) {
      start_what_may_start();
      if (under_way_ == 0 && (!failure_.ok() || waiting_.empty())) return failure_;
      for (Inbox::Arrival& arrival : await()) take(std::move(arrival));
    }
  }

 private:
  void start_what_may_start() {
    const TimeMs now = monotonic_now_ms();
    if (failure_.ok() && now >= deadline_ms_ && !waiting_.empty()) failure_ = last_problem_;
    if (!failure_.ok()) return;
    for (size_t i = 0; i < waiting_.size() && under_way_ < policy_.parallel;) {
      if (waiting_[i].not_before_ms > now) {
        ++i;
        continue;
      }
      send(std::move(waiting_[i]), now);
      waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(i));
    }
    while (under_way_ + waiting_.size() < policy_.parallel) {
      std::optional<BatchCall> call = next_();
      if (!call) return;
      send({*std::move(call), 0, 0}, now);
    }
  }

  void send(Attempt attempt, TimeMs now) {
    ++under_way_;
    const TimeMs left = std::max<TimeMs>(deadline_ms_ - now, 1);
    const auto timeout_ms = static_cast<uint32_t>(std::min<TimeMs>(left, policy_.call_timeout_ms));
    const auto start = attempt.call.send;
    start(timeout_ms, [inbox = inbox_,
                       attempt = std::move(attempt)](StatusOr<grpc::ByteBuffer> answer) mutable {
      std::lock_guard lock(inbox->mutex);
      inbox->arrived.push_back({std::move(attempt), std::move(answer)});
      inbox->changed.notify_one();
    });
  }

  // What has arrived; nothing when a waiting attempt's time has come. Calls have deadlines, so this
  // ends.
  std::deque<Inbox::Arrival> await() {
    std::unique_lock lock(inbox_->mutex);
    const auto arrived = [&] { return !inbox_->arrived.empty(); };
    if (waiting_.empty() || !failure_.ok() || under_way_ >= policy_.parallel) {
      inbox_->changed.wait(lock, arrived);
    } else {
      TimeMs wake_ms = deadline_ms_;
      for (const Attempt& attempt : waiting_) wake_ms = std::min(wake_ms, attempt.not_before_ms);
      const TimeMs wait_ms = std::max<TimeMs>(wake_ms - monotonic_now_ms(), 0);
      inbox_->changed.wait_for(lock, std::chrono::milliseconds(wait_ms), arrived);
    }
    return std::exchange(inbox_->arrived, {});
  }

  void take(Inbox::Arrival arrival) {
    --under_way_;
    if (!failure_.ok()) return;
    if (arrival.answer.ok()) {
      failure_ = arrival.attempt.call.take(*arrival.answer);
      return;
    }
    last_problem_ = arrival.answer.status();
    if (!worth_another_try(last_problem_)) {
      failure_ = last_problem_;
      return;
    }
    Attempt again = std::move(arrival.attempt);
    again.not_before_ms = monotonic_now_ms() + backoff_ms(policy_, ++again.failures);
    waiting_.push_back(std::move(again));
  }

  const RetryPolicy& policy_;
  const TimeMs deadline_ms_;
  const std::function<std::optional<BatchCall>()>& next_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::vector<Attempt> waiting_;  // at most `parallel`
  size_t under_way_ = 0;
  Status failure_;
  Status last_problem_;
};

}  // namespace

Status run_batch(const RetryPolicy& policy, TimeMs deadline_ms,
                 const std::function<std::optional<BatchCall>()>& next) {
  return Batch(policy, deadline_ms, next).run();
}

}  // namespace tessera::net
