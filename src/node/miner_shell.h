// What MinerNode is inside: the threads and links around MinerControl.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <variant>

#include "audit_worker.h"
#include "background_worker.h"
#include "compute_worker.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/base/clock.h"
#include "tessera/node/miner_control.h"
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

class MinerNode::Shell final : public MinerSurroundings {
 public:
  Shell(MinerOptions options, MinerLinks links);

  StatusOr<std::string> run(const std::atomic<bool>& stop);
  void on_frame(const ports::Caller& caller, std::string frame, std::function<void(core::Admission)> done);
  void on_probe(std::function<void(StatusOr<core::PeerHealth>)> done);
  StatusOr<std::string> donate(const Digest& name) const { return donated_.get(name); }
  void set_address(std::string address) { control_.set_address(std::move(address)); }
  void close() {
    inputs_->close();
    data_jobs_->close();
    refuse_waiting();
  }

 private:
  void register_miner(const core::Registration& registration) override;
  void sync(core::SyncRequest request) override;
  Status begin(const core::RegisterAnswer& answer, const core::RunSpec& spec, const core::DataPlan& data,
               uint64_t run_tag) override;
  void joined(const std::string& run_id) override;
  void add_to(core::MinerStatus* status) override;
  Status note_steps(const core::StepNote& note) override;
  void end_incarnation() override;
  void reply(const core::miner_effect::ReplyAdmission& effect) override;
  void send(core::miner_effect::SendFrame effect) override;
  void probe(const core::miner_effect::Probe& effect) override;
  void read_tokens(core::MicrobatchKey key) override;
  void compute(core::ComputeJob job) override;
  void background(core::BackgroundJob job) override;
  void say(const core::miner_effect::Say& effect) override;

  void post(Input input);
  void refuse_waiting();
  void answer_probe(uint64_t reply);
  void handle(Input input);
  void fetch_tokens(core::MicrobatchKey key);
  void data_loop();

  const MinerOptions options_;
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

  core::RunSpec spec_;
  core::DataPlan data_;
  MinerControl control_;
  DonatedState donated_;  // of the background thread's
  std::unique_ptr<BackgroundWorker> background_;
  std::unique_ptr<AuditWorker> audit_;  // outlives the compute thread, which fills it
  std::unique_ptr<ComputeWorker> compute_;
  std::jthread data_thread_;
};

}  // namespace tessera::node
