// The miner's control thread: what MinerNode is inside.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <variant>

#include "background_worker.h"
#include "compute_worker.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/base/clock.h"
#include "tessera/base/prng.h"
#include "tessera/node/miner_node.h"

namespace tessera::node {

using core::MinerEvent;

// An event of the state machine, or news for the shell itself.
struct Registered {
  StatusOr<core::RegisterAnswer> answer;
};
struct Answered {
  StatusOr<core::SyncAnswer> answer;
};
struct Fatal {
  Status status;
};
struct Probed {
  uint64_t reply = 0;
};
using Input = std::variant<MinerEvent, Registered, Answered, Fatal, Probed>;

class MinerNode::Shell {
 public:
  Shell(MinerOptions options, MinerLinks links) : options_(std::move(options)), links_(links) {}

  StatusOr<std::string> run(const std::atomic<bool>& stop);
  void on_frame(const ports::Caller& caller, std::string frame, std::function<void(core::Admission)> done);
  void on_probe(std::function<void(StatusOr<core::PeerHealth>)> done);
  void set_address(std::string address) { options_.registration.address = std::move(address); }
  void close() {
    inputs_->close();
    data_jobs_->close();
    refuse_waiting_frames();
  }

 private:
  static constexpr TimeMs kFirstRetryMs = 200;

  void refuse_waiting_frames() {
    // Nobody will handle them any more; whoever sent them goes to another miner.
    std::map<uint64_t, std::function<void(core::Admission)>> unanswered;
    {
      std::lock_guard lock(mutex_);
      unanswered.swap(replies_);
    }
    for (const auto& [reply, done] : unanswered) done(core::Admission::kNotReady);
    std::map<uint64_t, std::function<void(StatusOr<core::PeerHealth>)>> probes;
    {
      std::lock_guard lock(mutex_);
      probes.swap(probes_);
    }
    for (const auto& [reply, done] : probes) done(unavailable("this miner ends"));
  }
  void post(Input input);
  void answer_probe(uint64_t reply);
  void handle(Input input);
  void on_registered(const StatusOr<core::RegisterAnswer>& answer);
  void on_answered(StatusOr<core::SyncAnswer> answer);
  Status begin(const core::RegisterAnswer& answer);
  void step(MinerEvent event);
  void perform(core::MinerEffect effect);
  void perform_send(core::miner_effect::SendFrame effect);
  void perform_probe(core::miner_effect::Probe effect);
  void report();
  void note_progress();
  void read_tokens(core::MicrobatchKey key);
  void data_loop();
  void begin_again(const std::string& reason);
  void retry_later(const std::string& what, const Status& status);

  MinerOptions options_;
  const MinerLinks links_;
  // Shared with link callbacks, which may outlive run(), or an incarnation, for a moment. Replaced under mutex_.
  std::shared_ptr<BoundedQueue<Input>> inputs_ = std::make_shared<BoundedQueue<Input>>(16384);
  std::unique_ptr<BoundedQueue<core::MicrobatchKey>> data_jobs_ =
      std::make_unique<BoundedQueue<core::MicrobatchKey>>(1024);

  // What the frame callbacks read: set once, before frames are let in.
  struct RunFacts {
    core::RunSpec spec;
    uint64_t run_tag = 0;
  };
  std::mutex mutex_;
  std::shared_ptr<const RunFacts> facts_;
  std::map<uint64_t, std::function<void(core::Admission)>> replies_;
  std::map<uint64_t, std::function<void(StatusOr<core::PeerHealth>)>> probes_;  // at most kMaxProbes
  uint64_t next_reply_ = 1;
  std::atomic<uint64_t> unreadable_frames_{0};

  core::RegisterAnswer registration_;
  core::RunSpec spec_;
  core::DataPlan data_;
  std::unique_ptr<core::Miner> miner_;
  std::unique_ptr<BackgroundWorker> background_;
  std::unique_ptr<ComputeWorker> compute_;
  std::jthread data_thread_;

  core::StepNote noted_;
  bool registering_ = false;
  bool registered_ = false;
  bool reporting_ = false;
  bool orchestrator_answers_ = true;
  bool draining_ = false;
  bool farewell_sent_ = false;      // a report that nothing is in flight any more
  bool farewell_answered_ = false;
  TimeMs last_tick_ = 0;
  TimeMs last_report_ = 0;
  TimeMs retry_at_ = 0;
  TimeMs retry_ms_ = kFirstRetryMs;
  Prng jitter_{random_u64()};
  std::optional<std::string> rejoin_;  // why the state machine wants to join again as a new incarnation
  std::optional<StatusOr<std::string>> over_;
};

}  // namespace tessera::node
