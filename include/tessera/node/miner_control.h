// What a miner's control thread does, without the thread: registers and reports when it is time to, hands events to the
// state machine and effects to whoever carries them out. MinerNode puts threads, links and the real clock around it; the
// simulator simulated ones.
//
// Not thread-safe: one thread owns it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "tessera/base/status.h"
#include "tessera/core/data_plan.h"
#include "tessera/core/miner.h"

namespace tessera::node {

// Links and workers of a miner. Nothing here waits; answers come back as calls of MinerControl.
class MinerSurroundings {
 public:
  virtual ~MinerSurroundings() = default;

  virtual void register_miner(const core::Registration& registration) = 0;  // -> on_registered, once, always
  virtual void sync(core::SyncRequest request) = 0;                         // -> on_answered, once, always
  // The run is known and begins here, before any of the following is asked for.
  virtual Status begin(const core::RegisterAnswer& answer, const core::RunSpec& spec, const core::DataPlan& data,
                       uint64_t run_tag) = 0;
  // Every accepted registration's run id.
  virtual void joined(const std::string& run_id) = 0;
  // What only links know of.
  virtual void add_to(core::MinerStatus* status) = 0;
  // Keeps how many local steps are done, for the process that comes after this one.
  virtual Status note_steps(const core::StepNote& note) = 0;
  // The incarnation is over and another one joins: all that was begun for it ends, unanswered.
  virtual void end_incarnation() = 0;

  virtual void reply(const core::miner_effect::ReplyAdmission& effect) = 0;
  virtual void send(core::miner_effect::SendFrame effect) = 0;              // -> FrameAnswered
  virtual void probe(const core::miner_effect::Probe& effect) = 0;          // -> ProbeAnswered
  virtual void read_tokens(core::MicrobatchKey key) = 0;                    // -> TokensRead
  virtual void compute(core::ComputeJob job) = 0;                           // -> its event
  virtual void background(core::BackgroundJob job) = 0;                     // -> its event
  virtual void say(const core::miner_effect::Say& effect) = 0;
};

struct MinerControlOptions {
  core::Registration registration;
  std::function<Signature(std::string_view)> sign;
  std::function<bool(const NodeId&, std::string_view, const Signature&)> verify;
  TimeMs unix_offset_ms = 0;   // unix time less the time that the calls below are given
  TimeMs tick_ms = 20;         // how often the state machine looks at its deadlines
  // Of incarnations after the first, and of waiting times.
  std::function<uint64_t()> random;
};

class MinerControl {
 public:
  MinerControl(MinerControlOptions options, MinerSurroundings& surroundings);

  void set_address(std::string address) { options_.registration.address = std::move(address); }

  // Registers, reports, ticks: whatever is due. To be called after every event and at the time that next() names.
  void work(TimeMs now);
  TimeMs next() const;

  void on_registered(TimeMs now, const StatusOr<core::RegisterAnswer>& answer);
  void on_answered(TimeMs now, StatusOr<core::SyncAnswer> answer);
  // Ignored before the run has begun.
  void step(TimeMs now, core::MinerEvent event);
  // Finishes what is in flight, within a limit, then over(). May be called again.
  void drain(TimeMs now);
  // The engine can't go on.
  void fail(Status status) { over_ = std::move(status); }

  // Why the process is to end; an error status is one a restart may mend. Nothing: it goes on.
  const std::optional<StatusOr<std::string>>& over() const { return over_; }
  // Null before the run has begun.
  const core::Miner* miner() const { return miner_.get(); }

 private:
  static constexpr TimeMs kFirstRetryMs = 200;

  Status begin(const core::RegisterAnswer& answer);
  void begin_again(const std::string& reason);
  void watch_drain(TimeMs now);
  void note_progress();
  void report(TimeMs now);
  TimeMs report_interval() const;
  void perform(core::MinerEffect effect);
  void retry_later(TimeMs now, const std::string& what, const Status& status);

  MinerControlOptions options_;
  MinerSurroundings& surroundings_;
  core::RegisterAnswer registration_;
  std::unique_ptr<core::Miner> miner_;
  core::StepNote noted_;
  bool registering_ = false;
  bool registered_ = false;
  bool reporting_ = false;
  bool orchestrator_answers_ = true;
  bool stopping_ = false;           // the operator here wants it to end
  bool draining_ = false;           // to end; not to join again
  bool farewell_sent_ = false;      // a report that nothing is in flight any more
  bool farewell_answered_ = false;
  TimeMs drain_until_ = 0;
  TimeMs last_tick_ = 0;
  TimeMs last_report_ = 0;
  TimeMs retry_at_ = 0;
  TimeMs retry_ms_ = kFirstRetryMs;
  std::optional<std::string> rejoin_;  // why the state machine wants to join again as a new incarnation
  std::optional<StatusOr<std::string>> over_;
};

}  // namespace tessera::node
