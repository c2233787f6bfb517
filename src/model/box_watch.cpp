#include "model/box_watch.h"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace tessera::model {
namespace {

using ports::BackwardResult;
using ports::BoundaryPayload;
using ports::ForwardResult;
using ports::LocalState;
using ports::MicrobatchKey;
using ports::StepResult;
using ports::TensorLayout;
using std::chrono::steady_clock;

constexpr int kExitRestart = 75;  // a restart may mend it (EX_TEMPFAIL)
// For calls to come back after the groups were aborted.
constexpr std::chrono::seconds kGrace{15};

// One thread that knows when the call under way began.
class Watch {
 public:
  explicit Watch(const BoxOptions& box) : patience_(box.patience), groups_(box.groups) {
    thread_ = std::jthread([this] { loop(); });
  }
  ~Watch() {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }

  void begin(const char* what) {
    std::lock_guard lock(mutex_);
    what_ = what;
    ++calls_;
    deadline_ = steady_clock::now() + patience_;
    changed_.notify_all();
  }
  // Whether it came back in time; never again after it once did not.
  Status end() {
    std::lock_guard lock(mutex_);
    deadline_.reset();
    if (!expired_.ok()) changed_.notify_all();
    return expired_;
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (!deadline_) {
        changed_.wait(lock);
        continue;
      }
      const steady_clock::time_point deadline = *deadline_;
      changed_.wait_until(lock, deadline);
      if (stopping_ || deadline_ != deadline || steady_clock::now() < deadline) continue;
      expire(&lock);
    }
  }

  void expire(std::unique_lock<std::mutex>* lock) {
    expired_ = internal_error("{} on the GPUs of this box did not end within {} ms: a GPU or its link hangs; the process has "
                              "to be restarted", what_, patience_.count());
    // Aborting may hang itself, so the process' end does not wait for it.
    std::thread abort([groups = groups_] {
      for (const auto& group : groups) group->abort();
    });
    abort.detach();
    const uint64_t late = calls_;
    const bool back = changed_.wait_for(*lock, kGrace, [&] { return stopping_ || !deadline_ || calls_ != late; });
    if (back) return;
    std::fprintf(stderr, "tessera-miner: error: %s\n", message_of(expired_).c_str());
    std::_Exit(kExitRestart);
  }

  const std::chrono::milliseconds patience_;
  const std::vector<std::shared_ptr<ports::CollectiveGroup>> groups_;
  std::mutex mutex_;
  std::condition_variable changed_;
  const char* what_ = "";
  std::optional<steady_clock::time_point> deadline_;  // of the call under way
  uint64_t calls_ = 0;
  Status expired_ = ok_status();
  bool stopping_ = false;
  std::jthread thread_;
};

class WatchedEngine final : public ports::StageEngine {
 public:
  WatchedEngine(std::unique_ptr<ports::StageEngine> engine, const BoxOptions& box)
      : engine_(std::move(engine)), watch_(box) {}
  ~WatchedEngine() override {
    watch_.begin("ending the workers");
    engine_.reset();
    (void)watch_.end();
  }

  const std::vector<TensorLayout>& layout() const override { return engine_->layout(); }
  uint64_t value_count() const override { return engine_->value_count(); }
  uint32_t accumulated_microbatches() const override { return engine_->accumulated_microbatches(); }
  uint64_t weight_version() const override { return engine_->weight_version(); }

  StatusOr<ForwardResult> forward(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
                                  const BoundaryPayload& input) override {
    return in_time("a forward pass", [&] { return engine_->forward(key, tokens, input); });
  }
  StatusOr<BackwardResult> backward(const MicrobatchKey& key, const BoundaryPayload& output_gradient, bool accumulate,
                                    const ports::InputGradientReady& input_gradient_ready) override {
    return in_time("a backward pass",
                   [&] { return engine_->backward(key, output_gradient, accumulate, input_gradient_ready); });
  }
  void discard(const MicrobatchKey& key) override { engine_->discard(key); }
  StatusOr<StepResult> step(double learning_rate) override {
    return in_time("an optimizer step", [&] { return engine_->step(learning_rate); });
  }
  std::vector<float> masters() override {
    watch_.begin("reading the weights");
    std::vector<float> values = engine_->masters();
    (void)watch_.end();  // the next call says it
    return values;
  }
  Status set_masters(const std::vector<float>& values) override {
    return in_time("setting the weights", [&] { return engine_->set_masters(values); });
  }
  LocalState export_state() override {
    watch_.begin("reading the optimizer state");
    LocalState state = engine_->export_state();
    (void)watch_.end();
    return state;
  }
  Status import_state(const LocalState& state) override {
    return in_time("setting the optimizer state", [&] { return engine_->import_state(state); });
  }
  StatusOr<std::vector<ports::WeightVersion>> older_weights() override {
    return in_time("reading older weights", [&] { return engine_->older_weights(); });
  }

 private:
  template <class Function>
  auto in_time(const char* what, Function&& function) -> decltype(function()) {
    watch_.begin(what);
    auto result = function();
    if (const Status late = watch_.end(); !late.ok()) return late;
    return result;
  }

  std::unique_ptr<ports::StageEngine> engine_;
  Watch watch_;
};

}  // namespace

std::unique_ptr<ports::StageEngine> watched(std::unique_ptr<ports::StageEngine> engine, const BoxOptions& box) {
  return std::make_unique<WatchedEngine>(std::move(engine), box);
}

}  // namespace tessera::model
