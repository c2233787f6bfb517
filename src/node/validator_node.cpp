#include "tessera/node/validator_node.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "tessera/base/bounded_queue.h"
#include "tessera/base/clock.h"
#include "tessera/base/log.h"
#include "tessera/base/thread_name.h"

namespace tessera::node {
namespace {

constexpr uint32_t kFirstReportMs = 200;
constexpr uint32_t kLongestPauseMs = 5000;
constexpr auto kLook = std::chrono::milliseconds(20);  // how often the flag is looked at

}  // namespace

class ValidatorNode::Shell {
 public:
  Shell(ValidatorOptions options, ValidatorLinks links) : options_(std::move(options)), links_(links) {}
  ~Shell() { close(); }

  StatusOr<std::string> run(const std::atomic<bool>& stop) {
    worker_ = std::jthread([this] { work(); });
    uint32_t pause_ms = kFirstReportMs;
    while (!stop) {
      auto orders = links_.orchestrator->report(next_report(true));
      if (orders.ok()) {
        TESSERA_RETURN_IF_ERROR(take(*orders));
        if (orders->leave) return std::string("the run is over");
        pause_ms = std::max<uint32_t>(orders->report_ms, 1);
        silent_ = false;
      } else {
        if (absl::IsPermissionDenied(orders.status()) || absl::IsInvalidArgument(orders.status())) return orders.status();
        if (!silent_) spdlog::warn("the orchestrator does not answer: {}; trying again until it does", message_of(orders.status()));
        silent_ = true;
        pause_ms = std::min(2 * std::max(pause_ms, kFirstReportMs), kLongestPauseMs);
      }
      wait(std::chrono::milliseconds(pause_ms), stop);
    }
    close();
    // So that a result which is there is not lost.
    const auto farewell = links_.orchestrator->report(next_report(false));
    return farewell.ok() ? std::string("stopped") : "stopped; the last report failed: " + message_of(farewell.status());
  }

 private:
  struct Job {
    core::AuditTask task;
    std::shared_ptr<const core::RunSpec> spec;
    std::shared_ptr<const core::DataPlan> data;
  };

  void close() {
    cancelled_ = true;
    jobs_.close();
    if (worker_.joinable()) worker_.join();
  }

  core::ValidatorReport next_report(bool wants_work) {
    core::ValidatorReport report;
    report.incarnation = options_.incarnation;
    report.device = options_.auditor.device;
    report.memory_bytes = options_.memory_bytes;
    report.software = options_.software;
    report.wants_work = wants_work;
    report.spec_version = spec_version_;
    std::lock_guard lock(mutex_);
    report.working_on = working_on_;
    report.results.assign(results_.begin(), results_.begin() + static_cast<std::ptrdiff_t>(std::min(results_.size(), core::kMaxResultsPerReport)));
    return report;
  }

  Status take(core::ValidatorOrders& orders) {
    if (orders.run_spec) {
      auto spec = std::make_shared<core::RunSpec>();
      auto data = std::make_shared<core::DataPlan>();
      if (!decode(*orders.run_spec, spec.get()) || !orders.data_plan || !decode(*orders.data_plan, data.get())) {
        return invalid_argument("the run's description can't be read; do both sides run the same version of Tessera?");
      }
      TESSERA_RETURN_IF_ERROR(core::validate(spec.get()));
      if (!run_spec_ && options_.joined) options_.joined(orders.run_id);
      if (!run_spec_) spdlog::info("validates run '{}'", spec->name);
      run_spec_ = std::move(spec);
      data_ = std::move(data);
      spec_version_ = orders.spec_version;
    }
    std::lock_guard lock(mutex_);
    std::erase_if(results_, [&](const core::AuditResult& result) {
      return std::find(orders.results_known.begin(), orders.results_known.end(), result.audit) != orders.results_known.end();
    });
    if (!orders.task || working_on_ != 0 || !run_spec_) return ok_status();
    // The answer to a report that was on its way when the audit was done.
    const bool done = std::any_of(results_.begin(), results_.end(),
                                  [&](const core::AuditResult& result) { return result.audit == orders.task->audit; });
    if (done || orders.task->stage >= run_spec_->pipeline.stages) return ok_status();
    working_on_ = orders.task->audit;
    TESSERA_CHECK(jobs_.push(Job{std::move(*orders.task), run_spec_, data_}) == PushResult::kOk);
    return ok_status();
  }

  void wait(std::chrono::milliseconds pause, const std::atomic<bool>& stop) {
    const auto until = std::chrono::steady_clock::now() + pause;
    std::unique_lock lock(mutex_);
    while (!stop && !news_ && std::chrono::steady_clock::now() < until) result_there_.wait_for(lock, kLook);
    news_ = false;
  }

  void work() {
    name_thread("audit");
    while (true) {
      const std::optional<Job> job = jobs_.pop(std::chrono::milliseconds(1000));
      if (cancelled_) return;
      if (!job) continue;
      const TimeMs begun = monotonic_now_ms();
      Auditor auditor(options_.auditor, *job->spec, *job->data, *links_.blobs, *links_.tokens);
      core::AuditResult result = auditor.audit(job->task, cancelled_);
      if (cancelled_) return;
      spdlog::info("audit {} of miner {}: {} ({} ms)", result.audit, job->task.miner, result.reason, monotonic_now_ms() - begun);
      std::lock_guard lock(mutex_);
      results_.push_back(std::move(result));
      working_on_ = 0;
      news_ = true;
      result_there_.notify_all();
    }
  }

  const ValidatorOptions options_;
  const ValidatorLinks links_;
  // run()'s caller's.
  std::shared_ptr<const core::RunSpec> run_spec_;
  std::shared_ptr<const core::DataPlan> data_;
  uint64_t spec_version_ = 0;
  bool silent_ = false;
  // Shared.
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::condition_variable result_there_;
  std::vector<core::AuditResult> results_;  // few: there is no new audit before these are known
  uint64_t working_on_ = 0;
  bool news_ = false;
  BoundedQueue<Job> jobs_{4};
  std::jthread worker_;
};

ValidatorNode::ValidatorNode(ValidatorOptions options, ValidatorLinks links)
    : shell_(std::make_unique<Shell>(std::move(options), links)) {}
ValidatorNode::~ValidatorNode() = default;

StatusOr<std::string> ValidatorNode::run(const std::atomic<bool>& stop) { return shell_->run(stop); }

}  // namespace tessera::node
