// An orchestrator's state machine with a clock that the test turns and a journal of what it was
// told. Every step is followed by a check of everything that must always hold.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "tessera/core/orchestrator.h"

namespace tessera::test {

// What is wrong with a step from one state to the next; empty if nothing is.
std::string broken_transition(const core::OrchestratorState& before, const core::Event& event,
                              const core::OrchestratorState& after);

class OrchestratorWorld {
 public:
  explicit OrchestratorWorld(const core::RunSpec& spec, uint64_t secret = 7);
  // Expects that the state is the replay of the journal, and that of its newest snapshot and the tail.
  ~OrchestratorWorld();

  void step(const core::Event& event);
  // Time goes on; what became due happens.
  void pass(TimeMs ms);
  // As the shell does it. False: no such process is registered.
  bool sync(const NodeId& node, core::SyncRequest request, core::SyncAnswer* answer);
  core::RegisterAnswer join(const core::Registration& registration);
  // A second orchestrator from this one's journal.
  core::Orchestrator replayed() const;
  // The same from the newest snapshot and what came after it.
  core::Orchestrator replayed_from_snapshot() const;
  // Called after each event; true: the orchestrator crashes there, and a report under way has no answer.
  std::function<bool(const core::Event&)> crashes_after;
  // A crash: one from the newest snapshot takes over, and what was under way begins again.
  void restart();

  const core::OrchestratorState& state() const { return core_.state(); }
  const core::StageRecord& stage(StageIndex s) const { return state().stages.at(s); }
  const core::MinerRecord& miner(MinerIndex m) const { return state().miners.at(m); }
  const core::Orchestrator& core() const { return core_; }
  TimeMs now() const { return now_; }
  bool said(const std::string& part) const;

  std::deque<core::RecomputeShard> recomputations;  // that the background was asked for
  std::deque<core::RemakeState> remakes;
  std::deque<core::RecheckResult> rechecks;
  std::deque<uint64_t> checkpoints;
  std::deque<uint64_t> restages;  // new stages that the background was asked for
  std::vector<core::Event> events;  // everything that happened
  std::vector<TimeMs> event_times;  // of each

 private:
  struct Record {
    TimeMs time = 0;
    std::string name;
    std::string body;
  };
  core::Orchestrator core_;
  TimeMs now_ = 1000;
  std::vector<Record> journal_;
  std::string snapshot_;      // taken every kSnapshotEvents
  size_t snapshot_after_ = 0; // records of the journal that it contains
  std::vector<std::string> decisions_;
};

}  // namespace tessera::test
