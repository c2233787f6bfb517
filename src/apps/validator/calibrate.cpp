#include "validator/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "common/daemon.h"
#include "tessera/base/crypto.h"
#include "tessera/base/prng.h"
#include "tessera/config/run_config.h"
#include "tessera/core/payload_name.h"
#include "tessera/core/stage_layout.h"
#include "tessera/model/stage_engine.h"
#include "tessera/node/audit_store.h"
#include "tessera/node/auditor.h"

namespace tessera::apps {
namespace {

constexpr double kMargin = 2;  // proposed thresholds over what was measured
constexpr uint64_t kShardTokens = uint64_t{1} << 32;

class MemoryBlobs final : public ports::BlobLink {
 public:
  StatusOr<std::vector<Digest>> put(const std::vector<std::string>& blobs) override {
    std::vector<Digest> names;
    for (const std::string& blob : blobs) blobs_[names.emplace_back(digest_of(blob))] = blob;
    return names;
  }
  StatusOr<std::vector<std::string>> get(const std::vector<Digest>& digests) override {
    std::vector<std::string> found;
    for (const Digest& digest : digests) {
      const auto blob = blobs_.find(digest);
      if (blob == blobs_.end()) return not_found("no blob {}", digest.brief());
      found.push_back(blob->second);
    }
    return found;
  }

 private:
  std::map<Digest, std::string> blobs_;
};

class RandomTokens final : public ports::TokenSource {
 public:
  explicit RandomTokens(uint32_t vocab) : vocab_(vocab) {}
  StatusOr<std::vector<uint32_t>> read(const core::TokenShard&, uint64_t first, uint64_t count) override {
    std::vector<uint32_t> tokens(count);
    for (uint64_t i = 0; i < count; ++i) tokens[i] = static_cast<uint32_t>(mix64(first + i) % vocab_);
    return tokens;
  }

 private:
  const uint32_t vocab_;
};

struct Variant {
  std::string device;
  uint32_t threads = 0;
};

using Engine = std::unique_ptr<ports::StageEngine>;

StatusOr<Engine> engine_of(const core::RunSpec& spec, StageIndex stage, const Variant& variant) {
  return model::make_stage_engine({.spec = spec, .stage = stage, .device = variant.device, .threads = static_cast<int>(variant.threads)});
}

// The work of one miner a stage, as audits of it.
class Recording {
 public:
  Recording(const core::RunSpec& spec, const core::DataPlan& data, ports::BlobLink& blobs, ports::TokenSource& tokens)
      : spec_(spec), data_(data), blobs_(blobs), tokens_(tokens), tasks_(spec.pipeline.stages) {}

  Status record(const Variant& variant, uint32_t steps) {
    for (StageIndex s = 0; s < spec_.pipeline.stages; ++s) {
      TESSERA_ASSIGN_OR_RETURN(auto engine, engine_of(spec_, s, variant));
      engines_.push_back(std::move(engine));
      tasks_[s].audit = s + 1;
      tasks_[s].stage = s;
      tasks_[s].device = variant.device;
      TESSERA_ASSIGN_OR_RETURN(tasks_[s].begin, commit(s, 1, 0));
    }
    const uint64_t count = uint64_t{steps} * spec_.training.microbatches_per_step;
    for (uint64_t id = 0; id < count; ++id) {
      TESSERA_RETURN_IF_ERROR(train(id, id / spec_.training.microbatches_per_step));
      if ((id + 1) % spec_.training.microbatches_per_step == 0) TESSERA_RETURN_IF_ERROR(step(id / spec_.training.microbatches_per_step));
    }
    for (StageIndex s = 0; s < spec_.pipeline.stages; ++s) {
      std::vector<core::StepRecord> taken = std::move(tasks_[s].end.steps);
      TESSERA_ASSIGN_OR_RETURN(tasks_[s].end, commit(s, 2, steps));
      tasks_[s].end.steps = std::move(taken);
    }
    engines_.clear();
    return ok_status();
  }
  const std::vector<core::AuditTask>& tasks() const { return tasks_; }

 private:
  StatusOr<core::SegmentCommit> commit(StageIndex stage, uint64_t number, uint64_t local_step) {
    core::miner_effect::StoreSegment segment;
    segment.commit.number = number;
    segment.commit.local_step = segment.commit.schedule_step = local_step;
    segment.commit.weight_version = engines_[stage]->weight_version();
    segment.commit.first_receipt = tasks_[stage].receipts.size() + 1;
    segment.state = std::make_shared<const core::LocalState>(engines_[stage]->export_state());
    core::SegmentCommit made = node::store_segment(blobs_, segment, {});
    if (made.state.is_zero()) return internal_error("the state of stage {} could not be kept", stage);
    return made;
  }

  Status train(MicrobatchId id, uint64_t local_step) {
    const core::MicrobatchKey key{id, 0};
    std::vector<uint32_t> tokens;
    for (const core::Window& window : core::windows_of(data_.train, spec_.model.context, spec_.training.seed, id, spec_.training.microbatch_size)) {
      TESSERA_ASSIGN_OR_RETURN(const auto part, tokens_.read(data_.train[window.shard], window.first_token, spec_.model.context + 1));
      tokens.insert(tokens.end(), part.begin(), part.end());
    }
    std::vector<core::Receipt> receipts(engines_.size());
    core::BoundaryPayload payload;
    for (StageIndex s = 0; s < engines_.size(); ++s) {
      core::Receipt& receipt = receipts[s];
      receipt.sequence = tasks_[s].receipts.size() + 1;
      receipt.stage = s;
      receipt.microbatch = id;
      receipt.accumulated = true;
      receipt.local_step = local_step;
      receipt.order = engines_[s]->accumulated_microbatches();
      TESSERA_ASSIGN_OR_RETURN(receipt.input_hash, keep(payload));
      TESSERA_ASSIGN_OR_RETURN(ports::ForwardResult result, engines_[s]->forward(key, tokens, payload));
      receipt.weight_version = result.weight_version;
      receipt.loss = static_cast<float>(result.loss);
      payload = std::move(result.output);
      TESSERA_ASSIGN_OR_RETURN(receipt.output_hash, keep(payload));
    }
    payload = {};
    for (StageIndex s = static_cast<StageIndex>(engines_.size()); s-- > 0;) {
      TESSERA_ASSIGN_OR_RETURN(receipts[s].gradient_in_hash, keep(payload));
      TESSERA_ASSIGN_OR_RETURN(ports::BackwardResult result, engines_[s]->backward(key, payload, true));
      payload = std::move(result.input_gradient);
      TESSERA_ASSIGN_OR_RETURN(receipts[s].gradient_out_hash, keep(payload));
      tasks_[s].receipts.push_back(receipts[s]);
    }
    return ok_status();
  }

  Status step(uint64_t number) {
    const double rate = core::learning_rate_at(spec_.training, number);
    for (StageIndex s = 0; s < engines_.size(); ++s) {
      tasks_[s].end.steps.push_back({rate, engines_[s]->accumulated_microbatches(), false});
      TESSERA_RETURN_IF_ERROR(engines_[s]->step(rate).status());
    }
    return ok_status();
  }

  StatusOr<Digest> keep(const core::BoundaryPayload& payload) {
    if (payload.bytes.empty()) return Digest{};
    TESSERA_RETURN_IF_ERROR(node::put_payloads(blobs_, {payload}));
    return core::name_of(payload);
  }

  const core::RunSpec& spec_;
  const core::DataPlan& data_;
  ports::BlobLink& blobs_;
  ports::TokenSource& tokens_;
  std::vector<core::AuditTask> tasks_;
  std::vector<Engine> engines_;
};

// Limits that nothing breaks: the figures are wanted.
core::RunSpec unlimited(core::RunSpec spec) {
  spec.audit.exact = false;
  spec.audit.relative_error = spec.audit.norm_deviation = spec.audit.delta_norm_deviation = spec.audit.loss_tolerance = 1;
  spec.audit.cosine = spec.audit.delta_cosine = 0;
  return spec;
}

StatusOr<nlohmann::json> measure(const CalibrateOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const config::RunConfig config, config::load_run_config(options.config, options.overrides));
  const core::RunSpec spec = unlimited(config.spec);
  core::DataPlan data;
  data.vocab = spec.model.vocab;
  data.train.push_back({.file = "random", .tokens = kShardTokens, .bytes = 0, .digest = {}, .object = {}});
  MemoryBlobs blobs;
  RandomTokens tokens(spec.model.vocab);
  std::vector<Variant> variants;
  for (const std::string& wanted : options.devices) {
    TESSERA_ASSIGN_OR_RETURN(const std::string device, model::choose_device(wanted));
    for (const uint32_t threads : options.threads) variants.push_back({device, threads});
  }
  Recording recording(spec, data, blobs, tokens);
  TESSERA_RETURN_IF_ERROR(recording.record(variants.front(), options.steps));
  const std::atomic<bool> cancelled{false};
  nlohmann::json measured = nlohmann::json::array();
  for (const Variant& variant : variants) {
    node::AuditorOptions auditor;
    auditor.device = variant.device;
    auditor.make_engine = [&](const core::RunSpec& run, StageIndex stage, const core::BoxShape&) { return engine_of(run, stage, variant); };
    node::Auditor judge(auditor, spec, data, blobs, tokens);
    for (const core::AuditTask& task : recording.tasks()) {
      const core::AuditResult result = judge.audit(task, cancelled);
      if (result.finding != core::AuditFinding::kNone) {
        return internal_error("stage {} on {} with {} threads: {}", task.stage, variant.device, variant.threads, result.reason);
      }
      TESSERA_ASSIGN_OR_RETURN(const auto evidence, blobs.get({result.evidence}));
      nlohmann::json figures = nlohmann::json::parse(evidence.front());
      figures["threads"] = variant.threads;
      measured.push_back(std::move(figures));
    }
  }
  return measured;
}

// What every measurement stays under, with a margin; never tighter than the run's own.
nlohmann::json proposal(const nlohmann::json& measured, const core::AuditSpec& audit) {
  double error = 0, angle = 0, norm = 0, delta_angle = 0, delta_norm = 0, loss = 0;
  for (const nlohmann::json& figures : measured) {
    for (const char* name : {"largest_deviation_of_activations", "largest_deviation_of_gradients"}) {
      error = std::max(error, figures[name]["relative_error"].get<double>());
      angle = std::max(angle, 1 - figures[name]["cosine"].get<double>());
      norm = std::max(norm, figures[name]["norm_deviation"].get<double>());
    }
    const nlohmann::json& delta = figures["largest_deviation_of_weight_deltas"];
    delta_angle = std::max(delta_angle, 1 - delta["cosine"].get<double>());
    delta_norm = std::max(delta_norm, delta["norm_deviation"].get<double>());
    loss = std::max(loss, figures["largest_loss_difference"].get<double>());
  }
  return {{"audit.relative_error", std::max(audit.relative_error, kMargin * error)},
          {"audit.cosine", std::min(audit.cosine, 1 - kMargin * angle)},
          {"audit.norm_deviation", std::max(audit.norm_deviation, kMargin * norm)},
          {"audit.delta_cosine", std::min(audit.delta_cosine, 1 - kMargin * delta_angle)},
          {"audit.delta_norm_deviation", std::max(audit.delta_norm_deviation, kMargin * delta_norm)},
          {"audit.loss_tolerance", std::max(audit.loss_tolerance, kMargin * loss)}};
}

}  // namespace

int calibrate(const CalibrateOptions& options) {
  const auto config = config::load_run_config(options.config, options.overrides);
  const auto measured = config.ok() ? measure(options) : StatusOr<nlohmann::json>(config.status());
  if (!measured.ok()) return fail("tessera-validator", measured.status());
  const nlohmann::json proposed = proposal(*measured, config->spec.audit);
  if (options.json) {
    fmt::print("{}\n", nlohmann::json{{"measured", *measured}, {"proposed", proposed}}.dump());
    return kExitOk;
  }
  fmt::print("{:<6} {:<8} {:>7}  {:>11} {:>11} {:>11} {:>11}  {}\n", "stage", "device", "threads", "activation", "gradient",
             "1 - cosine", "loss", "same bits");
  for (const nlohmann::json& figures : *measured) {
    fmt::print("{:<6} {:<8} {:>7}  {:>11.3g} {:>11.3g} {:>11.3g} {:>11.3g}  {} of {}\n", figures["stage"].get<uint32_t>(),
               figures["validator_device"].get<std::string>(), figures["threads"].get<uint32_t>(),
               figures["largest_deviation_of_activations"]["relative_error"].get<double>(),
               figures["largest_deviation_of_gradients"]["relative_error"].get<double>(),
               1 - figures["largest_deviation_of_weight_deltas"]["cosine"].get<double>(),
               figures["largest_loss_difference"].get<double>(), figures["tensors_with_the_same_bits"].get<uint32_t>(),
               figures["tensors_with_the_same_bits"].get<uint32_t>() + figures["tensors_compared"].get<uint32_t>());
  }
  fmt::print("\nactivation, gradient: largest relative error; 1 - cosine: of the change of the weights.\n"
             "Twice what was measured, and not tighter than the run's own:\n\naudit:\n");
  for (const auto& [key, value] : proposed.items()) fmt::print("  {}: {:.6g}\n", key.substr(std::string("audit.").size()), value.get<double>());
  return kExitOk;
}

}  // namespace tessera::apps
