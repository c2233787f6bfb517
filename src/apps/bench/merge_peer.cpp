// tessera-bench merge-server and merge-peer: one blob server and the participants of a merge as processes of their own, for
// scripts/merge_network. What an orchestrator would tell them they tell each other in files of a common folder, so that what
// is timed is the transfers and the arithmetic.
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "apps/bench/bench.h"
#include "apps/bench/merge_store.h"
#include "tessera/base/bytes.h"
#include "tessera/base/files.h"
#include "tessera/base/large_vector.h"
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

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience(300);
constexpr size_t kThreads = 4, kTransfers = 8;  // as a miner's

struct PeerOptions : MergeBenchOptions {
  std::string server;
  std::string folder;
  uint32_t participant = 0;
};

// Whole or not there.
Status tell(const std::string& path, const std::string& text) { return write_file_atomic(path, text); }

StatusOr<std::string> hear(const std::string& path) {
  const auto end = Clock::now() + kPatience;
  while (Clock::now() < end) {
    auto text = read_file(path);
    if (text.ok()) return text;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return unavailable("{} did not come", path);
}

StatusOr<Digest> digest_from(const std::string& hex) {
  Digest digest;
  const auto bytes = from_hex(hex);
  if (!bytes || !Digest::from(*bytes, &digest)) return data_loss("'{}' is no digest", hex);
  return digest;
}

class MergePeer {
 public:
  explicit MergePeer(const PeerOptions& options) : options_(options), values_(options.mebibytes * (1u << 20) / sizeof(float)),
        base_(values_, 0.0f), snapshot_(snapshot_of(values_, options.participant)) {
    merge_.block_values = options.block_values;
    merge_.upload_format = merge_.result_format = format_named(options.format);
    if (merge_.upload_format == Codec::kFp32) return;
    residual_ = snapshot_of(values_, options.participant + options.participants);
    for (float& value : residual_) value /= 512;
  }
  StatusOr<nlohmann::json> run();

 private:
  std::string path(const std::string& what, uint64_t number, uint32_t participant) const {
    return fmt::format("{}/{}-{}-{}", options_.folder, what, number, participant);
  }
  Status barrier(const std::string& what);
  StatusOr<std::vector<core::UploadRef>> commit(node::KeptBlobs& blobs, core::ObjectManifest* manifest);
  Status reduce(node::KeptBlobs& blobs, const std::vector<core::UploadRef>& uploads);
  StatusOr<core::ShardResult> result_of(size_t shard) const;
  StatusOr<std::vector<core::ShardResult>> results() const;
  void fetch_ahead(node::ResultPrefetch& prefetch) const;

  const PeerOptions options_;
  const uint64_t values_;
  const std::vector<float> base_;
  const std::vector<float> snapshot_;
  std::vector<float> residual_;  // as a miner has one from its second merge on
  core::MergeSpec merge_;
  std::vector<core::PlannedShard> plan_;
};

Status MergePeer::barrier(const std::string& what) {
  TESSERA_RETURN_IF_ERROR(tell(path(what, 0, options_.participant), "1"));
  for (uint32_t p = 0; p < options_.participants; ++p) TESSERA_RETURN_IF_ERROR(hear(path(what, 0, p)).status());
  return ok_status();
}

StatusOr<std::vector<core::UploadRef>> MergePeer::commit(node::KeptBlobs& blobs, core::ObjectManifest* manifest) {
  TESSERA_ASSIGN_OR_RETURN(const node::DeltaUpload mine,
                           node::commit_delta(blobs, merge_, base_, snapshot_, residual_, kThreads));
  *manifest = mine.manifest;
  TESSERA_RETURN_IF_ERROR(tell(path("upload", 0, options_.participant), mine.object.hex()));
  std::vector<core::UploadRef> uploads;
  for (uint32_t p = 0; p < options_.participants; ++p) {
    TESSERA_ASSIGN_OR_RETURN(const std::string hex, hear(path("upload", 0, p)));
    TESSERA_ASSIGN_OR_RETURN(const Digest object, digest_from(hex));
    uploads.push_back({object, 1.0f / static_cast<float>(options_.participants)});
  }
  return uploads;
}

Status MergePeer::reduce(node::KeptBlobs& blobs, const std::vector<core::UploadRef>& uploads) {
  std::vector<core::ShardTask> tasks;
  for (uint32_t i = 0; i < plan_.size(); ++i) {
    const core::PlannedShard& shard = plan_[i];
    if (shard.owner_a != options_.participant && shard.owner_b != options_.participant) continue;
    tasks.push_back({i, shard.first_block, shard.block_count, digest_of(random_bytes(32))});
  }
  const node::ReduceInputs inputs{.uploads = uploads,
                                  .stage_values = values_,
                                  .merge = merge_,
                                  .rounding_key = 1,
                                  .rounds = core::butterfly_rounds(options_.participants),
                                  .overlap = true,
                                  .keep_waiting = [](int64_t idle_ms) { return idle_ms < kPatience / std::chrono::milliseconds(1); }};
  std::mutex mutex;
  Status failure;
  node::reduce_shards(blobs, inputs, tasks, [&](const core::ShardTask& task, StatusOr<node::Reduction> made) {
    const Status status = made.ok() ? tell(path("shard", task.shard, options_.participant),
                                           made->result.hex() + made->object.hex() + task.token.hex())
                                    : made.status();
    std::lock_guard lock(mutex);
    if (!status.ok()) failure = status;
  });
  return failure;
}

// When both of its owners have told.
StatusOr<core::ShardResult> MergePeer::result_of(size_t shard) const {
  core::ShardResult result{plan_[shard].first_block, plan_[shard].block_count, {}, {}};
  for (const uint32_t owner : {plan_[shard].owner_a, plan_[shard].owner_b}) {
    TESSERA_ASSIGN_OR_RETURN(const std::string text, hear(path("shard", shard, owner)));
    if (text.size() != 192) return data_loss("'{}' names no copy", text);
    TESSERA_ASSIGN_OR_RETURN(const Digest named, digest_from(text.substr(0, 64)));
    TESSERA_ASSIGN_OR_RETURN(const Digest object, digest_from(text.substr(64, 64)));
    TESSERA_ASSIGN_OR_RETURN(const Digest token, digest_from(text.substr(128, 64)));
    if (!result.copies.empty() && named != result.result) return internal_error("the owners of shard {} differ", shard);
    result.result = named;
    result.copies.push_back({object, token});
  }
  return result;
}

StatusOr<std::vector<core::ShardResult>> MergePeer::results() const {
  std::vector<core::ShardResult> results;
  for (size_t i = 0; i < plan_.size(); ++i) {
    TESSERA_ASSIGN_OR_RETURN(results.emplace_back(), result_of(i));
  }
  return results;
}

// As an orchestrator names them: others' shards, as soon as their owners agree, in the order of the plan.
void MergePeer::fetch_ahead(node::ResultPrefetch& prefetch) const {
  for (size_t i = 0; i < plan_.size(); ++i) {
    if (plan_[i].owner_a == options_.participant || plan_[i].owner_b == options_.participant) continue;
    const auto result = result_of(i);
    if (!result.ok()) return;  // run() meets it too
    prefetch.add({{result->first_block, result->block_count, result->copies.front().object}});
  }
}

StatusOr<nlohmann::json> MergePeer::run() {
  const uint64_t blocks = (values_ + merge_.block_values - 1) / merge_.block_values;
  if (options_.participant >= options_.participants) return invalid_argument("--participant is below --participants");
  plan_ = core::butterfly_plan(options_.participants, blocks, 1);
  if (blocks < plan_.size()) return invalid_argument("{} blocks are too few for {} shards", blocks, plan_.size());
  net::BlobLinkOptions link;
  link.server = options_.server;
  link.signer = std::make_shared<net::RequestSigner>(KeyPair::generate());
  link.deadline_ms = 300000;
  TESSERA_ASSIGN_OR_RETURN(const auto grpc, net::GrpcBlobLink::create(link));
  TESSERA_RETURN_IF_ERROR(grpc->put({fmt::format("hello of {}", options_.participant)}).status());  // the connections are there before the time
  CountingBlobs counted(*grpc);
  node::KeptBlobs kept(counted);
  kept.begin(3 * kernels::merge_run_bytes(merge_.upload_format, values_, merge_.block_values));
  std::vector<float> base(values_, 0.0f), momentum(values_, 0.0f);
  TESSERA_RETURN_IF_ERROR(barrier("ready"));
  const auto begin = Clock::now();
  const auto so_far = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  core::ObjectManifest manifest;
  TESSERA_ASSIGN_OR_RETURN(const auto uploads, commit(kept, &manifest));
  const double committed = so_far();
  Status stored;
  double uploaded = 0;
  std::jthread uploader([&] {
    stored = node::store_delta(kept, manifest, core::butterfly_rounds(options_.participants), kTransfers, [] { return false; });
    uploaded = so_far();
  });
  auto prefetch = std::make_unique<node::ResultPrefetch>(kept, merge_, values_);
  std::jthread listener([&] { fetch_ahead(*prefetch); });
  TESSERA_RETURN_IF_ERROR(reduce(kept, uploads));
  auto room = large_vector<float>(values_);
  uploader.join();
  TESSERA_RETURN_IF_ERROR(stored);
  const double finished = so_far();
  TESSERA_ASSIGN_OR_RETURN(const auto shards, results());
  const double reduced = so_far();
  listener.join();
  prefetch.reset();
  TESSERA_ASSIGN_OR_RETURN(const std::vector<float> mean,
                           node::fetch_mean(kept, merge_, values_, shards, {}, kTransfers, nullptr, std::move(room)));
  kernels::outer_step_cpu(base.data(), momentum.data(), mean.data(), values_, 0.7f, 0.9f);
  const double applied = so_far();
  TESSERA_RETURN_IF_ERROR(barrier("applied"));  // what follows must not cost the others' time
  // Times since the beginning.
  return nlohmann::json{{"seconds", applied},    {"committed", committed}, {"uploaded", uploaded},
                        {"own_shards", finished}, {"all_shards", reduced},
                        {"bytes_up", counted.up.load()}, {"bytes_down", counted.down.load()},
                        {"state", digest_of(node::bytes_of(base)).hex()}};
}

Status run_peer(const PeerOptions& options) {
  net::prepare_grpc();
  TESSERA_ASSIGN_OR_RETURN(const nlohmann::json row, MergePeer(options).run());
  std::printf("%s\n", row.dump().c_str());
  return write_report(options.json, row);
}

// Until it is killed.
Status run_server(const std::string& listen) {
  net::prepare_grpc();
  MemoryStore store;
  TESSERA_ASSIGN_OR_RETURN(const auto server, net::OrchestratorServer::start(
                                                  {.listen = listen, .key = KeyPair::generate(), .run_id = "bench"}, nullptr, &store));
  while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
}

}  // namespace

void add_merge_peer_bench(CLI::App* app) {
  auto listen = std::make_shared<std::string>("127.0.0.1:7700");
  CLI::App* server = app->add_subcommand("merge-server", "The blob server of scripts/merge_network");
  server->add_option("--listen", *listen, "host:port")->capture_default_str();
  on_call(server, [listen] { return run_server(*listen); });
  auto options = std::make_shared<PeerOptions>();
  options->mebibytes = 16;
  CLI::App* peer = app->add_subcommand("merge-peer", "One participant of scripts/merge_network");
  peer->add_option("--server", options->server, "host:port")->required();
  peer->add_option("--folder", options->folder, "Common to all participants, empty at first")->required()->check(CLI::ExistingDirectory);
  peer->add_option("--participant", options->participant, "From 0")->required();
  peer->add_option("--participants", options->participants)->check(CLI::Range(2, 64))->capture_default_str();
  peer->add_option("--mebibytes", options->mebibytes, "Of fp32 weights")->check(CLI::Range(1, 4096))->capture_default_str();
  peer->add_option("--block-values", options->block_values)->check(CLI::IsMember({4096, 16384, 65536, 262144}))->capture_default_str();
  peer->add_option("--format", options->format)->check(CLI::IsMember({"fp32", "bf16", "int8", "int4"}))->capture_default_str();
  peer->add_option("--json", options->json, "Write the figures there");
  on_call(peer, [options] { return run_peer(*options); });
}

}  // namespace tessera::apps
