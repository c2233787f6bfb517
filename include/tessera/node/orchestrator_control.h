// What the orchestrator's control thread does, without the thread: a call goes in, it is checked, its news become journal
// entries and steps of the state machine, and its answer comes out when the entries are committed. OrchestratorNode puts
// threads and the real clock around it; the simulator a simulated clock and a journal in memory.
//
// Not thread-safe: one thread owns it.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tessera/base/crypto.h"
#include "tessera/base/status.h"
#include "tessera/core/orchestrator.h"
#include "tessera/node/blob_asks.h"
#include "tessera/node/journal_snapshots.h"
#include "tessera/node/orchestrator_jobs.h"
#include "tessera/node/registration_limit.h"
#include "tessera/node/silence_watch.h"
#include "tessera/ports/checkpoint_store.h"
#include "tessera/ports/journal.h"
#include "tessera/ports/links.h"

namespace tessera::node {

struct OrchestratorOptions {
  std::optional<core::RunSpec> spec;  // validated; none: that of the journal, or the node waits for a run to be created
  core::DataPlan data;                // with objects published
  // A run from the text of its YAML, for orders to create one. On the background thread. Empty: such orders are refused.
  OrchestratorJobs::PrepareRun prepare_run = {};
  std::optional<ports::Checkpoint> resume_from;
  std::vector<NodeId> admins;      // may give orders
  std::vector<NodeId> validators;  // may audit
  uint64_t blob_share_bytes = uint64_t{64} << 20;  // that every key may store without being asked
  uint32_t registrations_per_minute = 0;           // of new keys from one address; 0: any number
  uint64_t snapshot_events = 100000;  // journal entries between two snapshots of the state; 0: none
  bool journal_json = true;        // each entry also as JSON, for people and SQL
  bool exit_when_over = false;     // run() returns when the run is finished or stopped and the miners know it
};

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
struct ValidateCall {
  ports::Caller caller;
  core::ValidatorReport report;
  std::function<void(StatusOr<core::ValidatorOrders>)> done;
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
using Call =
    std::variant<RegisterCall, SyncCall, ValidateCall, QueryCall, CommandCall, CreatedCall, PublishedCall, core::Event>;

// What differs between a daemon and a simulation.
struct OrchestratorSurroundings {
  std::function<TimeMs()> unix_ms;
  std::function<TimeMs()> monotonic_ms;
  std::function<std::string(size_t)> random_bytes;
  NodeId key;  // of the orchestrator, which signs leases
  std::function<Signature(std::string_view)> sign;
  std::function<bool(const NodeId&, std::string_view, const Signature&)> verify;
  // Takes work for the background; its result comes back through handle(). Never waits. False: it takes none any more.
  std::function<bool(OrchestratorJob)> start;
  // This key may store blobs now; the run asks it for more of them; it may not any longer.
  std::function<void(const NodeId&, const BlobShare&)> registered;
  std::function<void(const NodeId&, uint64_t bytes)> blobs_asked;
  std::function<void(const NodeId&)> forgotten;
};

class OrchestratorControl {
 public:
  OrchestratorControl(OrchestratorOptions options, ports::Journal& journal, OrchestratorSurroundings surroundings)
      : options_(std::move(options)),
        journal_(journal),
        surroundings_(std::move(surroundings)),
        registration_limit_(options_.registrations_per_minute),
        snapshots_(journal, options_.snapshot_events) {}

  // Replays the journal (or begins a new run in an empty one) and begins again what was under way in the background.
  // `blobs` takes the tensors of a checkpoint that is resumed from.
  Status open(ports::BlobLink& blobs);
  // One call after the other, then commit(): their entries in one transaction, then their answers. An error of either
  // means that the journal does not take any more: the process must end.
  Status handle(Call call);
  // Silence and deadlines become events.
  Status watch_time();
  Status commit();
  bool uncommitted() const { return !batch_.empty() || !answers_.empty() || snapshots_.has_parts(); }
  // The run is finished or stopped, and the miners had the time to hear it.
  bool over();

  const core::OrchestratorState& state() const { return core_.state(); }
  // Of the run, or of the one that will be created.
  const std::string& run_id() const { return run_id_; }
  const OrchestratorOptions& options() const { return options_; }

 private:
  Status replay();
  Status begin_or_resume(ports::BlobLink& blobs);
  Status create(const core::RunSpec& spec, const core::DataPlan& data);
  Status apply(core::Event event);        // steps and adds to the batch
  void perform(core::Effects effects);
  Status handle_register(RegisterCall& call);
  void forget(const core::ForgottenMiner& gone);
  bool takes_over_too_soon(const core::Registration& registration);
  Status handle_sync(SyncCall& call);
  Status handle_validate(ValidateCall& call);
  Status watch_validators();
  Status handle_command(CommandCall& call);
  Status handle_create(CommandCall& call);
  Status handle_created(CreatedCall& call);
  void check_published(const core::StatePublished& claim);
  Status handle_published(const PublishedCall& call);
  struct Order {
    std::optional<core::Event> event;
    std::string text;
  };
  StatusOr<Order> read_order(const std::string& command, const std::string& argument) const;
  void note_loss(const core::ReceiptsArrived& arrived);
  // Unix time, but it never goes back: neither with the clock nor behind what the journal has.
  TimeMs now() { return last_time_ = std::max(last_time_, surroundings_.unix_ms()); }
  TimeMs monotonic() const { return surroundings_.monotonic_ms(); }

  const OrchestratorOptions options_;
  ports::Journal& journal_;
  const OrchestratorSurroundings surroundings_;
  RegistrationLimit registration_limit_;
  BlobAsks blob_asks_;
  core::Orchestrator core_;
  JournalSnapshots snapshots_;
  std::string run_id_;
  std::vector<ports::JournalRecord> batch_;
  std::vector<std::function<void()>> answers_;
  std::map<MinerIndex, std::string> sessions_;
  SilenceWatch heard_;
  std::map<MinerIndex, TimeMs> taken_over_at_;  // by another process with the same key
  std::map<MinerIndex, core::MinerStatus> statuses_;
  std::map<MinerIndex, bool> told_to_leave_;
  std::map<MinerIndex, TimeMs> published_checked_;  // when a miner's claim to have published was last given to a check
  std::map<StageIndex, MinerIndex> published_looks_;  // under way: whose claim
  std::map<NodeId, TimeMs> validators_heard_;
  double loss_ = 0;                       // moving average of the tail's losses since this process began; 0: none yet
  TimeMs last_time_ = 0;
  TimeMs over_since_ = 0;
};

}  // namespace tessera::node
