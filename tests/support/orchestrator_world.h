// An orchestrator's state machine with a clock that the test turns and a journal of what it was
// told. Every step is followed by a check of everything that must always hold.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "tessera/core/orchestrator.h"

namespace tessera::test {

class OrchestratorWorld {
 public:
  explicit OrchestratorWorld(const core::RunSpec& spec);
  ~OrchestratorWorld();  // expects that the state is the replay of the journal

  void step(const core::Event& event);
  // Time goes on; what became due happens.
  void pass(TimeMs ms);
  // As the shell does it. False: no such process is registered.
  bool sync(const NodeId& node, core::SyncRequest request, core::SyncAnswer* answer);
  core::RegisterAnswer join(const core::Registration& registration);
  // A second orchestrator from this one's journal.
  core::Orchestrator replayed() const;
  // A crash: the replayed one takes over, and what was under way begins again.
  void restart();

  const core::OrchestratorState& state() const { return core_.state(); }
  const core::StageRecord& stage(StageIndex s) const { return state().stages.at(s); }
  const core::MinerRecord& miner(MinerIndex m) const { return state().miners.at(m); }
  const core::Orchestrator& core() const { return core_; }
  TimeMs now() const { return now_; }
  bool said(const std::string& part) const;

  std::deque<core::RecomputeShard> recomputations;  // that the background was asked for
  std::deque<uint64_t> checkpoints;
  std::vector<core::Event> events;  // everything that happened

 private:
  struct Record {
    TimeMs time = 0;
    std::string name;
    std::string body;
  };
  core::Orchestrator core_;
  TimeMs now_ = 1000;
  std::vector<Record> journal_;
  std::vector<std::string> decisions_;
};

}  // namespace tessera::test
