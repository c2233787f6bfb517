// The machine of the orchestrator: one process after the other over one journal. The process is the
// daemon's own control and background jobs; simulated are the time that they and the journal take,
// and the network.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "tessera/node/orchestrator_control.h"
#include "world.h"

namespace tessera::sim {

class SimulatedOrchestrator {
 public:
  explicit SimulatedOrchestrator(World& world);

  Status start();
  void crash(TimeUs restart_us);
  // Events of its process; the caller has seen that the generation is the present one.
  Status handle(const Event& event);
  Status receive(Message message);
  // Of an operator; `argument` as tesseractl sends it.
  Status order(const std::string& command, const std::string& argument);
  uint64_t orders_obeyed() const { return orders_obeyed_; }

  bool up() const { return control_ != nullptr; }
  uint32_t generation() const { return generation_; }
  // Of the present process, else of the one before.
  const core::OrchestratorState& state() const {
    return control_ ? control_->state() : last_state_;
  }
  const MemoryJournal& journal() const { return journal_; }
  // Empty if the state is the replay of the journal.
  std::string replay_problem();
  bool is_done(MicrobatchId microbatch) const;

 private:
  struct Asked {  // who waits for an answer
    uint32_t node = 0;
    uint32_t generation = 0;
    uint64_t call = 0;
    bool registration = false;
  };
  node::OrchestratorOptions options() const;
  node::OrchestratorSurroundings surroundings();
  template <class Answer>
  void answer(const Asked& asked, StatusOr<Answer> value);
  void commit_later();
  void start_job();
  TimeUs tick_us() const { return std::max<TimeUs>(1000, us_of_ms(world_.sim.tick_ms)); }

  World& world_;
  MemoryJournal journal_;
  MemoryCheckpoints checkpoints_;
  node::OrchestratorJobs jobs_;
  uint32_t generation_ = 0;
  core::OrchestratorState last_state_;
  uint64_t orders_obeyed_ = 0;

  // of the process
  std::unique_ptr<node::OrchestratorControl> control_;
  std::vector<Asked> asked_;
  bool commit_is_due_ = false;
  std::deque<node::OrchestratorJob> job_queue_;
  bool job_runs_ = false;
  TimeUs swept_at_us_ = kBeginUs;
};

}  // namespace tessera::sim
