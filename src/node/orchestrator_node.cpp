// The threads around OrchestratorControl.
#include "tessera/node/orchestrator_node.h"

#include <fmt/format.h>

#include "orchestrator_shell.h"
#include "tessera/base/log.h"
#include "tessera/base/thread_name.h"

namespace tessera::node {
namespace {

constexpr size_t kBatchLimit = 512;  // requests that share one journal transaction
constexpr auto kWait = std::chrono::milliseconds(20);
constexpr TimeMs kSweepMs = 60000;   // between two collections of unneeded blobs

}  // namespace

OrchestratorNode::Shell::Shell(OrchestratorOptions options, const OrchestratorPorts& ports)
    : ports_(ports),
      jobs_of_background_(*ports.blobs, *ports.checkpoints, ports.sweep_blobs, options.prepare_run),
      control_(std::move(options), *ports.journal, surroundings()) {}

OrchestratorSurroundings OrchestratorNode::Shell::surroundings() {
  return {.unix_ms = unix_now_ms,
          .monotonic_ms = monotonic_now_ms,
          .random_bytes = random_bytes,
          .key = ports_.key->id(),
          .sign = [key = ports_.key](std::string_view bytes) { return key->sign(bytes); },
          .verify = verify,
          .start = [this](OrchestratorJob job) {
            const PushResult pushed = jobs_.push(std::move(job));
            TESSERA_CHECK(pushed != PushResult::kFull);
            return pushed == PushResult::kOk;
          },
          .registered = [open = ports_.blob_accounts.open](const NodeId& node, const BlobShare& share) { if (open) open(node, share); },
          .blobs_asked = [credit = ports_.blob_accounts.credit](const NodeId& node, uint64_t bytes) { if (credit) credit(node, bytes); },
          .forgotten = [close = ports_.blob_accounts.close](const NodeId& node) { if (close) close(node); }};
}

Status OrchestratorNode::Shell::start() {
  TESSERA_RETURN_IF_ERROR(control_.open(*ports_.blobs));
  background_ = std::jthread([this] { background_loop(); });
  return ok_status();
}

void OrchestratorNode::Shell::close() {
  calls_.close();
  jobs_.close();
  while (std::optional<Call> call = calls_.try_pop()) {
    std::visit(
        [](auto& waiting) {
          if constexpr (requires { waiting.done; }) waiting.done(unavailable("the orchestrator is stopping"));
        },
        *call);
  }
}

StatusOr<std::string> OrchestratorNode::Shell::run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon) {
  bool stopping = false;
  while (true) {
    std::optional<Call> call = calls_.pop(kWait);
    for (size_t i = 0; call && i < kBatchLimit; ++i) {
      TESSERA_RETURN_IF_ERROR(control_.handle(std::move(*call)));
      call = calls_.try_pop();
    }
    if (call) TESSERA_RETURN_IF_ERROR(control_.handle(std::move(*call)));
    TESSERA_RETURN_IF_ERROR(control_.watch_time());
    if (stop.load() && !stopping) {
      stopping = true;
      if (!control_.state().created) return std::string("stopped; no run was created");
      TESSERA_RETURN_IF_ERROR(control_.handle(core::Event(core::Commanded{core::Command::kStop})));
    }
    TESSERA_RETURN_IF_ERROR(control_.commit());
    sweep_if_due();
    if (abandon.load()) return std::string("stopped at once; the journal has everything that was acknowledged");
    if ((control_.options().exit_when_over || stopping) && control_.over()) {
      return fmt::format("the run is {}", core::name_of(control_.state().phase));
    }
  }
}

void OrchestratorNode::Shell::sweep_if_due() {
  if (!jobs_of_background_.sweeps() || monotonic_now_ms() - swept_at_ < kSweepMs) return;
  swept_at_ = monotonic_now_ms();
  jobs_.push(make_sweep_job(control_.state()));
}

void OrchestratorNode::Shell::background_loop() {
  name_thread("background");
  while (true) {
    const std::optional<OrchestratorJob> job = jobs_.pop(std::chrono::milliseconds(1000));
    if (jobs_.closed()) return;  // what is left begins again after a restart
    if (!job) continue;
    std::optional<OrchestratorJobResult> result = jobs_of_background_.run(*job);
    if (!result) continue;
    if (auto* event = std::get_if<core::Event>(&*result)) {
      calls_.push(std::move(*event));
    } else if (auto* published = std::get_if<PublishedCall>(&*result)) {
      calls_.push(std::move(*published));
    } else {
      enqueue(std::move(std::get<CreatedCall>(*result)));
    }
  }
}

StatusOr<std::unique_ptr<OrchestratorNode>> OrchestratorNode::open(OrchestratorOptions options, OrchestratorPorts ports) {
  auto shell = std::make_unique<Shell>(std::move(options), ports);
  TESSERA_RETURN_IF_ERROR(shell->start());
  return std::unique_ptr<OrchestratorNode>(new OrchestratorNode(std::move(shell)));
}

OrchestratorNode::OrchestratorNode(std::unique_ptr<Shell> shell) : shell_(std::move(shell)) {}
OrchestratorNode::~OrchestratorNode() = default;

const std::string& OrchestratorNode::run_id() const { return shell_->run_id(); }

StatusOr<std::string> OrchestratorNode::run(const std::atomic<bool>& stop, const std::atomic<bool>& abandon) {
  StatusOr<std::string> why = shell_->run(stop, abandon);
  shell_->close();
  return why;
}

void OrchestratorNode::on_register(const ports::Caller& caller, core::Registration registration,
                                   std::function<void(StatusOr<core::RegisterAnswer>)> done) {
  shell_->enqueue(RegisterCall{caller, std::move(registration), std::move(done)});
}
void OrchestratorNode::on_sync(const ports::Caller& caller, core::SyncRequest request,
                               std::function<void(StatusOr<core::SyncAnswer>)> done) {
  shell_->enqueue(SyncCall{caller, std::move(request), std::move(done)});
}
void OrchestratorNode::on_validate(const ports::Caller& caller, core::ValidatorReport report,
                                   std::function<void(StatusOr<core::ValidatorOrders>)> done) {
  shell_->enqueue(ValidateCall{caller, std::move(report), std::move(done)});
}
void OrchestratorNode::on_query(const ports::Caller&, std::string topic, std::string argument,
                                std::function<void(StatusOr<std::string>)> done) {
  shell_->enqueue(QueryCall{std::move(topic), std::move(argument), std::move(done)});
}
void OrchestratorNode::on_command(const ports::Caller& caller, std::string command, std::string argument,
                                  std::function<void(StatusOr<std::string>)> done) {
  shell_->enqueue(CommandCall{caller.node, std::move(command), std::move(argument), std::move(done)});
}

}  // namespace tessera::node
