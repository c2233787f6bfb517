#include "support/simulated_swarm.h"

#include <fmt/format.h>

#include <algorithm>

#include "support/scripted_miner.h"
#include "support/small_run.h"

namespace tessera::test {
namespace {

constexpr TimeMs kPollMs = 5;
constexpr TimeMs kReportTimeoutMs = 100;

}  // namespace

SimulatedSwarm::SimulatedSwarm(const core::RunSpec& spec, uint64_t seed)
    : world(spec), spec_(spec), random_(seed), order_random_(mix64(seed) ^ 1) {
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    for (uint32_t replica = 0; replica < spec.pipeline.miners_per_stage; ++replica) {
      processes_.emplace_back();
      processes_.back().number = processes_.size();
      processes_.back().wanted_stage = s;
      start_process(processes_.size() - 1);
    }
  }
}

void SimulatedSwarm::require(bool condition, const std::string& what) {
  if (!condition && broken.empty()) broken = fmt::format("at {} ms: {}", now_, what);
}

bool SimulatedSwarm::fault(double probability) {
  const bool happens = chaos_ && random_.uniform() < probability;
  faults += happens;
  return happens;
}

void SimulatedSwarm::at(TimeMs when, std::function<void()> what) {
  queue_.emplace(std::pair(std::max(when, now_), next_entry_++), std::move(what));
}

void SimulatedSwarm::in_process(size_t p, TimeMs when, std::function<void(Process&)> what) {
  at(when, [this, p, incarnation = processes_[p].incarnation, what = std::move(what)]() mutable {
    Process& process = processes_[p];
    if (!process.alive || process.incarnation != incarnation) return;
    if (process.frozen_until > now_) {
      in_process(p, process.frozen_until, std::move(what));
    } else {
      what(process);
    }
  });
}

void SimulatedSwarm::run(TimeMs chaos_ms, TimeMs limit_ms) {
  TimeMs next_poll = 0;
  TimeMs next_blow = 100;
  bool was_chaos = true;
  while (now_ < limit_ms && broken.empty() && world.state().phase != core::RunPhase::kFinished) {
    chaos_ = now_ < chaos_ms;
    if (was_chaos && !chaos_) {
      was_chaos = false;
      if (!orchestrator_up_) {
        world.restart();
        orchestrator_up_ = true;
      }
      world.step(core::Commanded{core::Command::kResume});
      for (Process& process : processes_) {
        if (!process.alive) process.restart_at = std::max<TimeMs>(now_, 1);
      }
    }
    if (chaos_ && now_ >= next_blow) {
      wreak();
      next_blow = now_ + delay(60);
    }
    if (chaos_ && operators && now_ % 40 == 0) give_order();
    if (now_ >= next_poll) {
      poll();
      next_poll = now_ + kPollMs;
    }
    while (!queue_.empty() && queue_.begin()->first.first <= now_) {
      const auto entry = queue_.extract(queue_.begin());
      entry.mapped()();
    }
    ++now_;
    if (orchestrator_up_) world.pass(1);
  }
}

void SimulatedSwarm::start_process(size_t p) {
  Process fresh;
  fresh.number = processes_[p].number;
  fresh.wanted_stage = processes_[p].wanted_stage;
  fresh.incarnation = random_.next() | 1;
  fresh.alive = true;
  processes_[p] = std::move(fresh);
}

void SimulatedSwarm::kill_process(size_t p, TimeMs down_ms) {
  processes_[p].alive = false;
  processes_[p].restart_at = now_ + down_ms;
  break_connections(p);
}

// Everyone who may have talked to it hears of it, but for a few.
void SimulatedSwarm::break_connections(size_t p) {
  const NodeId node = node_of(processes_[p].number);
  for (size_t other = 0; other < processes_.size(); ++other) {
    if (other == p || fault(0.2)) continue;
    in_process(other, now_ + delay(5), [this, other, node](Process& process) {
      if (process.miner) step(other, core::miner_event::PeerBroken{node});
    });
  }
}

// One misfortune.
void SimulatedSwarm::wreak() {
  ++faults;
  const size_t victim = random_.below(processes_.size());
  switch (random_.below(9)) {
    case 0:
    case 1:
      if (processes_[victim].alive) kill_process(victim, delay(600));
      break;
    case 2:
    case 3:
      processes_[victim].frozen_until = now_ + delay(800);
      break;
    case 4:
      if (orchestrator_up_) {
        orchestrator_up_ = false;
        at(now_ + delay(300), [this] {
          if (orchestrator_up_) return;
          world.restart();
          orchestrator_up_ = true;
          for (const core::MinerRecord& miner : world.state().miners) heard_[miner.index] = now_;
        });
      }
      break;
    case 5:
      if (processes_.size() < 3 * spec_.pipeline.stages) {
        processes_.emplace_back();
        processes_.back().number = processes_.size();
        start_process(processes_.size() - 1);
      }
      break;
    case 6:
      if (processes_[victim].alive && processes_[victim].miner &&
          processes_[victim].drain_until == 0) {
        processes_[victim].drain_until = now_ + 300;
        in_process(victim, now_,
                   [this, victim](Process&) { step(victim, core::miner_event::DrainRequested{}); });
      }
      break;
    case 7:
      if (orchestrator_up_) world.step(core::Commanded{core::Command::kPause});
      at(now_ + delay(100), [this] {
        if (orchestrator_up_) world.step(core::Commanded{core::Command::kResume});
      });
      break;
    default:
      if (orchestrator_up_) world.step(core::Commanded{core::Command::kCheckpoint});
      break;
  }
}

// One order, if it is not refused.
void SimulatedSwarm::give_order() {
  const core::OrchestratorState& state = world.state();
  if (!orchestrator_up_ || state.miners.empty()) return;
  const auto stages = static_cast<uint32_t>(state.stages.size());
  const auto miner = static_cast<MinerIndex>(order_random_.below(state.miners.size()));
  StatusOr<std::optional<core::Event>> order = std::optional<core::Event>();
  switch (order_random_.below(6)) {
    case 0:
    case 1:
      order = world.core().assign_order(miner, static_cast<StageIndex>(order_random_.below(stages)), false);
      break;
    case 2:
      order = world.core().drain_order(miner);
      break;
    case 3:
      order = world.core().spec_order("merge.min_microbatches", std::to_string(3 + order_random_.below(8)));
      break;
    default: {
      std::vector<uint32_t> layers(stages, 1);
      for (uint32_t left = state.spec.model.layers - stages; left > 0; --left) layers[order_random_.below(stages)]++;
      order = world.core().stages_order(layers);
      break;
    }
  }
  if (!order.ok() || !*order) return;
  ++orders;
  world.step(**order);
}

void SimulatedSwarm::poll() {
  for (size_t p = 0; p < processes_.size(); ++p) {
    if (!processes_[p].alive && processes_[p].restart_at > 0 && now_ >= processes_[p].restart_at)
      start_process(p);
    if (processes_[p].alive && processes_[p].frozen_until <= now_) poll_process(p);
  }
  if (orchestrator_up_) poll_orchestrator();
}

void SimulatedSwarm::poll_process(size_t p) {
  Process& process = processes_[p];
  if (process.drain_until > 0 && now_ >= process.drain_until) {
    kill_process(p, delay(200));
    return;
  }
  if (!process.registered) {
    if (orchestrator_up_) join(p);
    return;
  }
  if (now_ - process.last_tick >= 20) {
    process.last_tick = now_;
    step(p, core::miner_event::Ticked{});
  }
  if (!process.alive || process.reporting) return;
  const TimeMs since = now_ - process.last_report;
  if (since >= spec_.timeouts.sync_ms || (process.miner->report_is_urgent() && since >= kPollMs))
    report(p);
}

void SimulatedSwarm::join(size_t p) {
  Process& process = processes_[p];
  core::Registration registration;
  registration.node = node_of(process.number);
  registration.incarnation = process.incarnation;
  registration.address = fmt::format("host-{}:1", process.number);
  registration.wanted_stage = process.wanted_stage;
  const core::RegisterAnswer answer = world.join(registration);
  if (answer.refusal != core::RegisterRefusal::kNone) {
    kill_process(p, 50);
    return;
  }
  heard_[answer.miner] = now_;
  process.registered = true;
  process.index = answer.miner;
  if (process.miner) return;
  core::MinerIdentity identity;
  identity.index = answer.miner;
  identity.incarnation = process.incarnation;
  identity.run_id = answer.run_id;
  identity.sign = [](std::string_view) { return Signature{}; };
  process.miner = std::make_unique<core::Miner>(world.state().spec, std::move(identity));
}

void SimulatedSwarm::report(size_t p) {
  Process& process = processes_[p];
  process.reporting = true;
  process.last_report = now_;
  auto request = std::make_shared<core::SyncRequest>(process.miner->report());
  const NodeId node = node_of(process.number);
  auto answered = std::make_shared<bool>(false);
  const auto give_up = [this, p, answered] {
    in_process(p, now_ + kReportTimeoutMs, [answered](Process& sender) {
      if (!*answered) sender.reporting = false;
      *answered = true;
    });
  };
  if (fault(0.03)) {
    give_up();
    return;
  }
  if (fault(0.03)) {  // once more, much later: nobody waits for that answer
    at(now_ + delay(500), [this, node, request] {
      core::SyncAnswer late;
      if (orchestrator_up_) world.sync(node, *request, &late);
    });
  }
  at(now_ + delay(4),
     [this, p, incarnation = process.incarnation, node, request, answered, give_up] {
       if (processes_[p].incarnation != incarnation) return;
       core::SyncAnswer answer;
       if (!orchestrator_up_) return give_up();
       const bool known = world.sync(node, *request, &answer);
       if (known) heard_[processes_[p].index] = now_;
       if (fault(0.03)) return give_up();
       in_process(p, now_ + delay(4), [this, p, answered, known, answer](Process& sender) {
         if (*answered) return;
         *answered = true;
         sender.reporting = false;
         sender.registered = known;
         if (known) step(p, core::miner_event::AnswerArrived{answer});
       });
     });
  give_up();
}

void SimulatedSwarm::poll_orchestrator() {
  for (const core::MinerRecord& miner : std::vector<core::MinerRecord>(world.state().miners)) {
    if (miner.live && now_ - heard_[miner.index] > spec_.timeouts.miner_lost_ms) {
      world.step(core::MinerLost{miner.index, "silent"});
    }
  }
  while (!world.recomputations.empty()) {
    const core::RecomputeShard job = world.recomputations.front();
    world.recomputations.pop_front();
    at(now_ + delay(20), [this, job] {
      if (!orchestrator_up_) return;
      core::ShardRecomputed done{job.stage, {job.target, job.shard, Digest{}}, {}};
      for (const core::UploadRef& upload : job.uploads) {
        if (blobs_.count(upload.object) == 0) done.unreadable.push_back(upload.object);
      }
      if (done.unreadable.empty() && !fault(0.1)) {
        done.commit.object = reduced(job.uploads, {job.shard, job.first_block, job.block_count});
        blobs_.insert(done.commit.object);
      }
      world.step(done);
    });
  }
  while (!world.restages.empty()) {
    const uint64_t id = world.restages.front();
    world.restages.pop_front();
    at(now_ + delay(30), [this, id] {
      if (!orchestrator_up_) return;
      core::StagesChanged changed{.id = id, .ok = !fault(0.1), .why = "a disk is full", .stage_values = {}, .states = {}};
      for (StageIndex s = 0; s < world.state().stages.size(); ++s) {
        changed.stage_values.push_back(300 + s);
        changed.states.push_back(digest_of(fmt::format("restage {} stage {}", id, s)));
        blobs_.insert(changed.states.back());
      }
      world.step(changed);
    });
  }
  while (!world.checkpoints.empty()) {
    const uint64_t id = world.checkpoints.front();
    world.checkpoints.pop_front();
    at(now_ + delay(30), [this, id] {
      if (orchestrator_up_) world.step(core::CheckpointWritten{id, !fault(0.2), "folder"});
    });
  }
}

void SimulatedSwarm::step(size_t p, core::MinerEvent event) {
  for (core::MinerEffect& effect : processes_[p].miner->step(now_, std::move(event))) {
    if (processes_[p].alive) perform(p, std::move(effect));
  }
}

void SimulatedSwarm::perform(size_t p, core::MinerEffect effect) {
  if (auto* reply = std::get_if<core::miner_effect::ReplyAdmission>(&effect)) {
    const auto found = replies_.extract(reply->reply);
    if (!found.empty()) found.mapped()(reply->admission);
  } else if (auto* frame = std::get_if<core::miner_effect::SendFrame>(&effect)) {
    send(p, std::move(*frame));
  } else if (auto* asked = std::get_if<core::miner_effect::Probe>(&effect)) {
    probe(p, std::move(*asked));
  } else if (auto* read = std::get_if<core::miner_effect::ReadTokens>(&effect)) {
    in_process(p, now_ + delay(3), [this, p, key = read->key](Process&) {
      core::miner_event::TokensRead event;
      event.key = key;
      event.ok = !fault(0.01);
      event.tokens.assign(spec_.training.microbatch_size * (spec_.model.context + 1), 1);
      step(p, std::move(event));
    });
  } else if (auto* job = std::get_if<core::ComputeJob>(&effect)) {
    compute(p, std::move(*job));
  } else if (auto* work = std::get_if<core::BackgroundJob>(&effect)) {
    background(p, std::move(*work));
  } else if (std::holds_alternative<core::miner_effect::Leave>(effect)) {
    kill_process(p, 50);
  }
}

void SimulatedSwarm::send(size_t p, core::miner_effect::SendFrame effect) {
  auto answered = std::make_shared<bool>(false);
  const auto answer = [this, p, answered, send = effect.send,
                       incarnation = processes_[p].incarnation](TimeMs when,
                                                                core::Admission admission) {
    if (processes_[p].incarnation != incarnation) return;  // the sender is gone
    in_process(p, when, [this, p, answered, send, admission](Process&) {
      if (*answered) return;
      *answered = true;
      step(p, core::miner_event::FrameAnswered{send, admission});
    });
  };
  answer(now_ + effect.timeout_ms, core::Admission::kUnreachable);
  const auto receiver = std::find_if(
      processes_.begin(), processes_.end(),
      [&](const Process& process) { return node_of(process.number) == effect.peer.node; });
  require(receiver != processes_.end(), "a frame for nobody");
  if (receiver == processes_.end() || !receiver->alive || !receiver->miner || fault(0.02)) return;
  in_process(
      static_cast<size_t>(receiver - processes_.begin()), now_ + delay(5),
      [this, r = static_cast<size_t>(receiver - processes_.begin()), from = processes_[p].number,
       answer, frame = std::make_shared<core::Frame>(std::move(effect.frame))](Process& to) {
        if (!to.miner) return;
        core::miner_event::FrameArrived event;
        event.frame = *frame;
        event.sender = node_of(from);
        event.reply = next_reply_++;
        replies_[event.reply] = [this, answer](core::Admission admission) {
          if (!fault(0.02)) answer(now_ + delay(5), admission);
        };
        step(r, std::move(event));
      });
}

void SimulatedSwarm::probe(size_t p, core::miner_effect::Probe effect) {
  auto answered = std::make_shared<bool>(false);
  const auto answer = [this, p, answered, id = effect.probe](TimeMs when, bool ok,
                                                             core::PeerHealth health) {
    in_process(p, when, [this, p, answered, id, ok, health](Process&) {
      if (*answered) return;
      *answered = true;
      step(p, core::miner_event::ProbeAnswered{id, ok, health});
    });
  };
  answer(now_ + effect.timeout_ms, false, {});
  const auto receiver = std::find_if(
      processes_.begin(), processes_.end(),
      [&](const Process& process) { return node_of(process.number) == effect.peer.node; });
  if (receiver == processes_.end() || !receiver->alive || fault(0.02)) return;
  in_process(static_cast<size_t>(receiver - processes_.begin()), now_ + delay(5),
             [this, p, incarnation = processes_[p].incarnation, answer](Process& to) {
               if (!to.miner || processes_[p].incarnation != incarnation) return;
               answer(now_ + delay(5), true, to.miner->health());
             });
}

std::string SimulatedSwarm::problem_at_end() const {
  const core::OrchestratorState& state = world.state();
  if (!broken.empty()) return broken;
  if (state.phase != core::RunPhase::kFinished) {
    return fmt::format("after {} ms the run is {}: {} of {} done, {} open", now_,
                       core::name_of(state.phase), state.done, spec_.total_microbatches(),
                       state.open.size());
  }
  if (state.done != spec_.total_microbatches() || !state.open.empty())
    return "microbatches were lost";
  for (const core::StageRecord& stage : state.stages) {
    if (stage.replica_mismatches > 0) return "replicas computed different bases";
    if (!stage.state_published) return "a stage's last state was not published";
  }
  for (const core::MinerRecord& miner : state.miners) {
    if (!miner.live || !miner.ready) continue;
    const core::StageRecord& stage = state.stages[miner.stage];
    const auto process =
        std::find_if(processes_.begin(), processes_.end(), [&](const Process& candidate) {
          return candidate.alive && candidate.index == miner.index &&
                 candidate.incarnation == miner.registration.incarnation;
        });
    if (miner.epoch != stage.epoch) {  // it came back when the last checkpoint was being written
      if (miner.checkpoint)
        return fmt::format("miner {} is in the checkpoint and behind its stage", miner.index);
      continue;
    }
    if (process != processes_.end() && process->base != stage.state)
      return "a replica holds another base than its stage";
  }
  return "";
}

}  // namespace tessera::test
