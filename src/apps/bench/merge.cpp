// tessera-bench merge: the whole of a merge over a blob server on loopback, one participant after the other: upload, reduce,
// apply. The same functions as a miner's; both owners of every shard and all replicas must come to the same bits.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/merge_reducers.h"
#include "apps/bench/merge_store.h"
#include "tessera/base/crypto.h"
#include "tessera/base/prng.h"
#include "tessera/core/butterfly.h"
#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/merge_transfer.h"
#include "tessera/node/objects.h"

namespace tessera::apps {
namespace {

constexpr size_t kThreads = 4, kTransfers = 8;  // as a miner's

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct Options : MergeBenchOptions {
  double trim_share = 0;
  bool cuda = false;
};

// One after the other on this machine: what it took one participant is a share of the sum.
struct MergeTimes {
  double upload = 0, reduce = 0, reduce_gpu = 0, apply = 0;
  uint64_t up = 0, down = 0;
};

struct Participant {
  std::unique_ptr<net::GrpcBlobLink> link;
  std::unique_ptr<CountingBlobs> counted;
  std::unique_ptr<node::KeptBlobs> kept;
  Digest upload;
};

class MergeBench {
 public:
  explicit MergeBench(const Options& options) : options_(options) {
    merge_.trim_share = options.trim_share;
    merge_.block_values = options.block_values;
    merge_.upload_format = merge_.result_format = format_named(options.format);
    values_ = options.mebibytes * (uint64_t{1} << 20) / sizeof(float);
    base_.resize(values_);
  }

  StatusOr<nlohmann::json> run();

 private:
  Status join();
  Status upload();
  Status reduce();
  StatusOr<double> reduce_on(kernels::MergeReducer* device);
  Status apply();

  const Options options_;
  core::MergeSpec merge_;
  uint64_t values_ = 0;
  std::vector<float> base_;
  MemoryStore store_;
  std::unique_ptr<net::OrchestratorServer> server_;
  std::vector<Participant> participants_;
  std::vector<core::ShardResult> results_;
  std::vector<std::string> measures_;  // of each
  std::unique_ptr<kernels::MergeReducer> gpu_;
  MergeTimes times_;
};

Status MergeBench::join() {
  TESSERA_ASSIGN_OR_RETURN(server_, net::OrchestratorServer::start(
                                        {.listen = "127.0.0.1:0", .key = KeyPair::generate(), .run_id = "bench"},
                                        nullptr, &store_));
  for (uint32_t p = 0; p < options_.participants; ++p) {
    net::BlobLinkOptions link;
    link.server = server_->address();
    link.signer = std::make_shared<net::RequestSigner>(KeyPair::generate());
    link.deadline_ms = 600000;
    Participant& participant = participants_.emplace_back();
    TESSERA_ASSIGN_OR_RETURN(participant.link, net::GrpcBlobLink::create(link));
    participant.counted = std::make_unique<CountingBlobs>(*participant.link);
    participant.kept = std::make_unique<node::KeptBlobs>(*participant.counted);
    participant.kept->begin(3 * kernels::merge_run_bytes(merge_.upload_format, values_, merge_.block_values));
  }
  return ok_status();
}

Status MergeBench::upload() {
  std::vector<float> snapshot;
  for (uint32_t p = 0; p < options_.participants; ++p) {
    snapshot = snapshot_of(values_, p);
    StatusOr<node::DeltaUpload> uploaded = internal_error("not begun");
    times_.upload += seconds_of([&] {
      uploaded = node::commit_delta(*participants_[p].kept, merge_, base_, snapshot, {}, kThreads);
      if (!uploaded.ok()) return;
      const Status stored = node::store_delta(*participants_[p].kept, uploaded->manifest,
                                              core::butterfly_rounds(options_.participants), kTransfers, [] { return false; });
      if (!stored.ok()) uploaded = stored;
    });
    if (!uploaded.ok()) return uploaded.status();
    participants_[p].upload = uploaded->object;
  }
  return ok_status();
}

// With a GPU in turns, twice each; the better counts.
Status MergeBench::reduce() {
  times_.reduce = times_.reduce_gpu = std::numeric_limits<double>::infinity();
  for (int round = 0; round < (options_.cuda ? 2 : 1); ++round) {
    TESSERA_ASSIGN_OR_RETURN(const double on_cpu, reduce_on(nullptr));
    times_.reduce = std::min(times_.reduce, on_cpu);
    if (!gpu_) continue;
    TESSERA_ASSIGN_OR_RETURN(const double on_gpu, reduce_on(gpu_.get()));
    times_.reduce_gpu = std::min(times_.reduce_gpu, on_gpu);
  }
  return ok_status();
}

// The seconds it took. Whatever reduced the shards before must have come to the same bits.
StatusOr<double> MergeBench::reduce_on(kernels::MergeReducer* device) {
  double seconds = 0;
  std::vector<core::ShardResult> results;
  std::vector<std::string> measures;
  std::vector<core::UploadRef> uploads;
  for (const Participant& participant : participants_) {
    uploads.push_back({participant.upload, 1.0f / static_cast<float>(options_.participants)});
  }
  const uint64_t blocks = (values_ + merge_.block_values - 1) / merge_.block_values;
  for (const core::PlannedShard& plan : core::butterfly_plan(options_.participants, blocks, 1)) {
    if (plan.block_count == 0) continue;
    core::ShardResult shard{plan.first_block, plan.block_count, {}, {}};
    for (const uint32_t owner : {plan.owner_a, plan.owner_b}) {
      const Digest token = digest_of(random_bytes(32));
      StatusOr<node::Reduction> reduction = internal_error("not begun");
      seconds += seconds_of([&] {
        reduction = node::reduce_shard(
            *participants_[owner].kept,
            {.uploads = uploads, .stage_values = values_, .merge = merge_, .rounding_key = 1, .overlap = true, .device = device},
            {.first_block = plan.first_block, .block_count = plan.block_count, .token = token});
      });
      if (!reduction.ok()) return reduction.status();
      if (!shard.copies.empty() && reduction->result != shard.result) return internal_error("the owners of a shard differ");
      shard.result = reduction->result;
      shard.copies.push_back({reduction->object, token});
      measures.push_back(encode(reduction->measures));
    }
    results.push_back(shard);
  }
  const auto agree = [](const core::ShardResult& a, const core::ShardResult& b) { return a.result == b.result; };
  if (!results_.empty() &&
      (measures != measures_ || !std::equal(results.begin(), results.end(), results_.begin(), results_.end(), agree))) {
    return internal_error("CPU and GPU reduce to different bits");
  }
  results_ = std::move(results);
  measures_ = std::move(measures);
  return seconds;
}

Status MergeBench::apply() {
  Digest state;
  for (const Participant& participant : participants_) {
    std::vector<float> base = base_, momentum(values_, 0.0f);
    Status status = ok_status();
    times_.apply += seconds_of([&] {
      const auto mean = node::fetch_mean(*participant.kept, merge_, values_, results_, {}, kTransfers);
      status = mean.status();
      if (mean.ok()) kernels::outer_step_cpu(base.data(), momentum.data(), mean->data(), values_, 0.7f, 0.9f);
    });
    TESSERA_RETURN_IF_ERROR(status);
    const Digest reached = digest_of(node::bytes_of(base));
    if (!state.is_zero() && reached != state) return internal_error("the replicas differ after the merge");
    state = reached;
    times_.up += participant.counted->up;
    times_.down += participant.counted->down;
  }
  return ok_status();
}

StatusOr<nlohmann::json> MergeBench::run() {
  std::vector<float> copy(values_);
  std::memcpy(copy.data(), base_.data(), values_ * sizeof(float));  // touches the pages
  double copied = 1e9;
  for (int i = 0; i < 3; ++i) {
    copied = std::min(copied, seconds_of([&] { std::memcpy(copy.data(), base_.data(), values_ * sizeof(float)); }));
  }
  std::vector<float>().swap(copy);
  if (options_.cuda) {
    TESSERA_ASSIGN_OR_RETURN(gpu_, kernels::make_cuda_merge_reducer(0));
  }
  TESSERA_RETURN_IF_ERROR(join());
  TESSERA_RETURN_IF_ERROR(upload());
  TESSERA_RETURN_IF_ERROR(reduce());
  TESSERA_RETURN_IF_ERROR(apply());
  const auto n = static_cast<double>(options_.participants);
  const double gigabytes = static_cast<double>(values_) * sizeof(float) / 1e9;
  const double seconds = (times_.upload + times_.reduce + times_.apply) / n;
  // A miner reduces 2/N of the stage from N uploads: twice the stage's fp32 bytes pass through it.
  nlohmann::json row = {{"format", options_.format},
                        {"participants", options_.participants},
                        {"fp32_bytes", values_ * sizeof(float)},
                        {"seconds_per_miner", seconds},
                        {"gb_per_s", gigabytes / seconds},
                        {"upload_gb_per_s", gigabytes * n / times_.upload},
                        {"reduce_gb_per_s", 2 * gigabytes * n / times_.reduce},
                        {"apply_gb_per_s", gigabytes * n / times_.apply},
                        {"memory_gb_per_s", 2 * gigabytes / copied},
                        {"bytes_up_per_miner", times_.up / options_.participants},
                        {"bytes_down_per_miner", times_.down / options_.participants},
                        {"replicas_identical", true}};
  if (gpu_) {
    row["reduce_on_gpu_gb_per_s"] = 2 * gigabytes * n / times_.reduce_gpu;
    TESSERA_ASSIGN_OR_RETURN(row["arithmetic_gb_per_s"], reducer_rate(nullptr, merge_, options_.participants, kTransfers));
    TESSERA_ASSIGN_OR_RETURN(row["arithmetic_on_gpu_gb_per_s"], reducer_rate(gpu_.get(), merge_, options_.participants, kTransfers));
  }
  return row;
}

Status run_merge_bench(const Options& options) {
  net::prepare_grpc();
  TESSERA_ASSIGN_OR_RETURN(const nlohmann::json row, MergeBench(options).run());
  std::printf("%u participants, %llu MiB of fp32, %s\n", options.participants,
              static_cast<unsigned long long>(options.mebibytes), options.format.c_str());
  for (const char* key : {"seconds_per_miner", "gb_per_s", "upload_gb_per_s", "reduce_gb_per_s", "apply_gb_per_s",
                          "memory_gb_per_s", "reduce_on_gpu_gb_per_s", "arithmetic_gb_per_s", "arithmetic_on_gpu_gb_per_s"}) {
    if (row.contains(key)) std::printf("%-26s %8.3f\n", key, row[key].get<double>());
  }
  std::printf("%-26s %8.3f MB up, %.3f MB down\n", "bytes per miner", row["bytes_up_per_miner"].get<double>() / 1e6,
              row["bytes_down_per_miner"].get<double>() / 1e6);
  return write_report(options.json, row);
}

}  // namespace

void add_merge_bench(CLI::App* app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app->add_subcommand(
      "merge",
      "A merge over a blob server on loopback, beside a copy in memory. Fails unless both owners of every shard and all "
      "replicas come to the same bits.");
  command->add_option("--mebibytes", options->mebibytes, "Of fp32 weights")->check(CLI::Range(1, 16384))->capture_default_str();
  command->add_option("--participants", options->participants, "Miners of the stage")->check(CLI::Range(2, 64))->capture_default_str();
  command->add_option("--block-values", options->block_values, "As merge.block_values")
      ->check(CLI::IsMember({4096, 16384, 65536, 262144}))
      ->capture_default_str();
  command->add_option("--format", options->format, "Of uploads and results")
      ->check(CLI::IsMember({"fp32", "bf16", "int8", "int4"}))
      ->capture_default_str();
  command->add_option("--trim-share", options->trim_share, "As merge.trim_share")->check(CLI::Range(0.0, 0.49))->capture_default_str();
  command->add_flag("--cuda", options->cuda, "Reduce on the first GPU too, and time the arithmetic alone on both");
  command->add_option("--json", options->json, "Write the figures there");
  on_call(command, [options] { return run_merge_bench(*options); });
}

}  // namespace tessera::apps
