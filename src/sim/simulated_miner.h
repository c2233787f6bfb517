// A machine of a miner: one process after the other. The process is the daemon's own control,
// compute jobs and background jobs; simulated are the time they take, the links and what befalls
// them.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_set>

#include "cheat.h"
#include "tessera/node/background_jobs.h"
#include "tessera/node/compute_jobs.h"
#include "tessera/node/miner_control.h"
#include "world.h"

namespace tessera::sim {

struct MinerProfile {
  double speed = 1;
  uint64_t memory_bytes = 0;
  std::optional<StageIndex> wanted_stage;
};

class SimulatedMiner final : public node::MinerSurroundings {
 public:
  SimulatedMiner(World& world, uint32_t node, MinerProfile profile);

  // Events of its process; the caller has seen that the generation is the present one.
  void handle(const Event& event);
  // A message for the process that runs now.
  void receive(Message message);
  // The answer that the system gives to a request of nobody: no such process.
  static void refuse(World& world, const Message& message);

  void start();
  // What happens to it from outside. A killed process starts again at `restart_us` (kNever: it does
  // not).
  void kill(TimeUs restart_us);
  void freeze(TimeUs until_us);
  void thaw();
  void drain(TimeUs restart_us);
  void cut(uint64_t mask, bool is_cut);
  void restart_if_down();

  bool alive() const { return control_ != nullptr; }
  bool frozen() const { return frozen_until_us_ > world_.queue.now_us(); }
  TimeUs frozen_until_us() const { return frozen_until_us_; }
  uint32_t generation() const { return generation_; }
  uint64_t incarnation() const { return incarnation_; }
  uint32_t node() const { return node_; }
  const std::optional<StageIndex>& stage() const { return stage_; }
  const node::BackgroundJobs* background_jobs() const { return background_.get(); }
  const core::Miner* miner() const { return control_ ? control_->miner() : nullptr; }

 private:
  // MinerSurroundings
  void register_miner(const core::Registration& registration) override;
  void sync(core::SyncRequest request) override;
  Status begin(const core::RegisterAnswer& answer, const core::RunSpec& spec,
               const core::DataPlan& data, uint64_t run_tag) override;
  void joined(const std::string& run_id) override {}
  void add_to(core::MinerStatus* status) override {}
  Status note_steps(const core::StepNote& note) override { return ok_status(); }
  void end_incarnation() override;
  void reply(const core::miner_effect::ReplyAdmission& effect) override;
  void send(core::miner_effect::SendFrame effect) override;
  void probe(const core::miner_effect::Probe& effect) override;
  void read_tokens(core::MicrobatchKey key) override;
  void compute(core::ComputeJob job) override;
  void background(core::BackgroundJob job) override;
  void say(const core::miner_effect::Say& effect) override {}

  // Blobs over the miner's own link: counts what passes, fails when the job is to fail.
  class Blobs final : public ports::BlobLink {
   public:
    explicit Blobs(MemoryBlobs& store) : store_(store) {}
    StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override;
    StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override;
    uint64_t bytes_up = 0;
    uint64_t bytes_down = 0;
    bool failing = false;

   private:
    MemoryBlobs& store_;
  };
  struct Caller {  // of a frame that is not answered yet
    uint32_t node = 0;
    uint32_t generation = 0;
    uint64_t send = 0;
    core::MicrobatchKey key;
    bool forward = false;
  };

  void forget_work();
  void refuse_callers(core::Admission why);
  void answer_probe(const Message& asked);
  void after_event();
  void end(TimeUs restart_us);
  void wake_when_due();
  void note_capacity();
  void step(core::MinerEvent event);
  void on_frame(Message& message);
  void on_call_answered(uint64_t call);
  void start_compute();
  void finish_compute();
  TimeUs compute_time(const core::ComputeJob& job);
  StatusOr<std::unique_ptr<ports::StageEngine>> make_engine();
  void note_computed(const core::ComputeJob& job);
  void start_background();
  void finish_background();
  void note_merge(const core::BackgroundJob& job);
  void take_background_event(core::MinerEvent event);
  double layer_count() const;

  World& world_;
  const uint32_t node_;
  const NodeId key_;
  const MinerProfile profile_;
  Cheat cheat_;
  uint32_t generation_ = 0;
  std::optional<StageIndex> stage_;  // of its present process, else of the one before
  TimeUs frozen_until_us_ = 0;
  bool comes_back_ = true;  // a dead process is started again when the faults are over

  // of the process
  std::unique_ptr<node::MinerControl> control_;
  core::RunSpec spec_;  // that its incarnation began with
  std::unique_ptr<node::ComputeJobs> compute_;
  std::unique_ptr<node::BackgroundJobs> background_;
  std::unique_ptr<Blobs> blobs_;
  // Of an incarnation that ended within one of their calls, until that call is over.
  std::unique_ptr<node::ComputeJobs> ended_compute_;
  std::unique_ptr<node::BackgroundJobs> ended_background_;
  uint64_t incarnation_ = 0;
  std::string session_;
  uint64_t call_ = 0;  // of the registration or report under way; 0: none
  uint64_t next_call_ = 1;
  bool call_is_registration_ = false;
  TimeUs wake_us_ = kNever;
  TimeUs drained_restart_us_ = 0;  // when it is started again after a drain; 0: it does not drain
  std::unordered_set<uint64_t> sends_;
  std::unordered_set<uint64_t> probes_;
  std::map<uint32_t, uint32_t> connected_;  // processes that have sent it something: node, generation
  std::map<uint64_t, Caller> callers_;  // by reply
  uint64_t next_reply_ = 1;
  std::map<uint64_t, core::MicrobatchKey> reads_;
  uint64_t next_read_ = 1;
  std::set<core::MicrobatchKey> held_;  // let in or leased, and no gradient made yet
  std::deque<core::ComputeJob> compute_queue_;
  TimeUs compute_until_us_ = kNever;  // of the job under way; kNever: none is
  double compute_ms_ = 0;
  double clock_ms_ = 0;  // of the engine, while it works
  bool compute_failed_ = false;
  std::deque<core::BackgroundJob> background_queue_;
  TimeUs background_until_us_ = kNever;
  std::vector<core::MinerEvent> background_events_;
};

}  // namespace tessera::sim
