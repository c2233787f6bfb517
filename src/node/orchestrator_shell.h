// What is behind OrchestratorNode: its calls, its state, its threads.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "journal_snapshots.h"
#include "orchestrator_checkpoint.h"
#include "restage.h"
#include "silence_watch.h"
#include "tessera/base/bounded_queue.h"
#include "tessera/node/orchestrator_node.h"

namespace tessera::node {

struct RegisterCall {
  ports::Caller caller;
  core::Registration registration;
  std::function<void(StatusOr<core::RegisterAnswer>)> done;
};
struct SyncCall {
  ports::Caller caller;
  core::SyncRequest request;
  std::function<void(StatusOr<core::SyncAnswer>)> done;
};
struct QueryCall {
  std::string topic;
  std::string argument;
  std::function<void(StatusOr<std::string>)> done;
};
struct CommandCall {
  NodeId node;
  std::string command;
  std::string argument;
  std::function<void(StatusOr<std::string>)> done;
};
// The background thread prepared the run that an administrator wants, or could not.
struct CreatedCall {
  StatusOr<NewRun> run;
  std::function<void(StatusOr<std::string>)> done;
};
using Call = std::variant<RegisterCall, SyncCall, QueryCall, CommandCall, CreatedCall, core::Event>;
// Whatever these objects do not need may go.
struct SweepJob {
  std::vector<Digest> live;
};
struct CreateJob {
  std::string yaml;
  std::function<void(StatusOr<std::string>)> done;
};
using OrchestratorJob = std::variant<core::RecomputeShard, CheckpointJob, SweepJob, RestageJob, CreateJob>;

// The JSON of an order that was obeyed.
std::string answer_to_order(bool changed, const std::string& text);

class OrchestratorNode::Shell {
 public:
  Shell(OrchestratorOptions options, OrchestratorPorts ports)
      : options_(std::move(options)), ports_(ports), snapshots_(*ports.journal, options_.snapshot_events) {}
  ~Shell() { close(); }

  Status start();
  StatusOr<std::string> run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon);
  const std::string& run_id() const { return run_id_; }
  bool is_registered(const NodeId& node) const {
    std::lock_guard lock(registered_mutex_);
    return registered_.count(node) > 0;
  }

  // No call is taken any more, and those that wait are told so.
  void close();

  // Any thread.
  template <class C>
  void enqueue(C call) {
    auto done = call.done;
    if (calls_.push(std::move(call)) != PushResult::kOk) {
      done(error(absl::StatusCode::kResourceExhausted, "the orchestrator is overloaded or stopping; try again"));
    }
  }

 private:
  Status replay();
  Status begin_or_resume();
  Status create(const core::RunSpec& spec, const core::DataPlan& data);
  Status apply(core::Event event);        // steps and adds to the batch
  void perform(core::Effects effects);
  Status commit();                        // the batch, then its answers
  Status handle(Call call);
  Status handle_register(RegisterCall& call);
  bool takes_over_too_soon(const core::Registration& registration);
  Status handle_sync(SyncCall& call);
  Status handle_command(CommandCall& call);
  Status handle_create(CommandCall& call);
  Status handle_created(CreatedCall& call);
  struct Order {
    std::optional<core::Event> event;
    std::string text;
  };
  StatusOr<Order> read_order(const std::string& command, const std::string& argument) const;
  void push_restage();
  Status watch_time();
  bool over(TimeMs now);
  void background_loop();
  core::ShardRecomputed recompute(const core::RecomputeShard& shard);
  void sweep_if_due();
  void sweep(const SweepJob& job);
  void note_loss(const core::ReceiptsArrived& arrived);
  // Unix time, but it never goes back: neither with the clock nor behind what the journal has.
  TimeMs now() { return last_time_ = std::max(last_time_, unix_now_ms()); }

  const OrchestratorOptions options_;
  const OrchestratorPorts ports_;
  core::Orchestrator core_;
  JournalSnapshots snapshots_;
  std::string run_id_;                    // of the run, or of the one that will be created
  BoundedQueue<Call> calls_{65536};
  BoundedQueue<OrchestratorJob> jobs_{1u << 20};  // more than a merge has shards
  std::vector<ports::JournalRecord> batch_;
  std::vector<std::function<void()>> answers_;
  mutable std::mutex registered_mutex_;
  std::set<NodeId> registered_;
  std::map<MinerIndex, std::string> sessions_;
  SilenceWatch heard_;
  std::map<MinerIndex, TimeMs> taken_over_at_;  // by another process with the same key
  std::map<MinerIndex, core::MinerStatus> statuses_;
  std::map<MinerIndex, bool> told_to_leave_;
  double loss_ = 0;                       // moving average of the tail's losses since this process began; 0: none yet
  TimeMs last_time_ = 0;
  TimeMs over_since_ = 0;
  TimeMs swept_at_ = monotonic_now_ms();
  std::jthread background_;
};

}  // namespace tessera::node
