#include "tessera/core/run_changes.h"

#include <fmt/format.h>

#include <charconv>
#include <variant>

namespace tessera::core {
namespace {

struct Changeable {
  const char* key;
  std::variant<uint32_t*, uint64_t*, double*, LrDecay*> value;
};

// Every one of these is read anew whenever it is used, by the orchestrator or by core::Miner. What is built into an engine
// (model, boundary, optimizer constants), into the tiling of merges (block_values, optimizer_moments) or into the count of
// microbatches (microbatch sizes, miners_per_stage) is not here.
std::vector<Changeable> changeable(RunSpec* spec) {
  return {{"pipeline.max_in_flight", &spec->pipeline.max_in_flight},
          {"pipeline.random_pathway_share", &spec->pipeline.random_pathway_share},
          {"pipeline.rebalance_gain", &spec->pipeline.rebalance_gain},
          {"pipeline.rebalance_patience", &spec->pipeline.rebalance_patience},
          {"training.learning_rate", &spec->training.learning_rate},
          {"training.min_learning_rate_ratio", &spec->training.min_learning_rate_ratio},
          {"training.warmup_steps", &spec->training.warmup_steps},
          {"training.decay", &spec->training.decay},
          {"merge.min_microbatches", &spec->merge.min_microbatches},
          {"merge.quorum", &spec->merge.quorum},
          {"merge.outer_learning_rate", &spec->merge.outer_learning_rate},
          {"merge.outer_momentum", &spec->merge.outer_momentum},
          {"merge.max_staleness", &spec->merge.max_staleness},
          {"merge.gate_norm_ratio", &spec->merge.gate_norm_ratio},
          {"merge.gate_cosine", &spec->merge.gate_cosine},
          {"merge.sample_share", &spec->merge.sample_share},
          {"timeouts.lease_ms", &spec->timeouts.lease_ms},
          {"timeouts.miner_lost_ms", &spec->timeouts.miner_lost_ms},
          {"timeouts.peer_ms", &spec->timeouts.peer_ms},
          {"timeouts.merge_phase_ms", &spec->timeouts.merge_phase_ms},
          {"timeouts.upload_grace_ms", &spec->timeouts.upload_grace_ms},
          {"timeouts.sync_ms", &spec->timeouts.sync_ms},
          {"checkpoint.every_microbatches", &spec->checkpoint.every_microbatches},
          {"checkpoint.keep", &spec->checkpoint.keep},
          {"audit.share", &spec->audit.share},
          {"audit.lease_ms", &spec->audit.lease_ms},
          {"audit.relative_error", &spec->audit.relative_error},
          {"audit.cosine", &spec->audit.cosine},
          {"audit.norm_deviation", &spec->audit.norm_deviation},
          {"audit.rounding_flips", &spec->audit.rounding_flips},
          {"audit.delta_cosine", &spec->audit.delta_cosine},
          {"audit.delta_norm_deviation", &spec->audit.delta_norm_deviation},
          {"audit.loss_tolerance", &spec->audit.loss_tolerance},
          {"audit.retention_epochs", &spec->audit.retention_epochs},
          {"audit.retention_bytes", &spec->audit.retention_bytes}};
}

template <class T>
Status parse(const std::string& key, const std::string& text, T* value) {
  T parsed{};
  const char* end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data(), end, parsed);
  if (failure != std::errc() || stop != end) {
    return invalid_argument("{}: expected a {}number, got '{}'", key, std::is_integral_v<T> ? "whole " : "", text.substr(0, 64));
  }
  *value = parsed;
  return ok_status();
}

Status parse(const std::string& key, const std::string& text, LrDecay* value) {
  if (text == "constant") {
    *value = LrDecay::kConstant;
  } else if (text == "linear") {
    *value = LrDecay::kLinear;
  } else if (text == "cosine") {
    *value = LrDecay::kCosine;
  } else {
    return invalid_argument("{}: '{}' is none of constant, linear, cosine", key, text.substr(0, 64));
  }
  return ok_status();
}

}  // namespace

Status set_key(RunSpec* spec, const std::string& key, const std::string& value) {
  RunSpec changed = *spec;
  std::string known;
  for (const Changeable& entry : changeable(&changed)) {
    known += (known.empty() ? "" : ", ") + std::string(entry.key);
    if (key != entry.key) continue;
    TESSERA_RETURN_IF_ERROR(std::visit([&](auto* target) { return parse(key, value, target); }, entry.value));
    TESSERA_RETURN_IF_ERROR(validate(&changed));
    *spec = changed;
    return ok_status();
  }
  return failed_precondition("{}: can't change in a running run: its miners' engines, data order or merges are built on it, or "
                             "there is no such key; what can change: {}", key.substr(0, 64), known);
}

StatusOr<std::vector<uint32_t>> parse_stage_layers(const RunSpec& spec, const std::string& text) {
  std::vector<uint32_t> layers;
  uint32_t next = 0;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at <= end) {
    uint32_t first = 0;
    const auto begin = std::from_chars(at, end, first);
    uint32_t last = first;
    const char* stop = begin.ptr;
    bool readable = begin.ec == std::errc();
    if (readable && stop != end && *stop == '-') {
      const auto tail = std::from_chars(stop + 1, end, last);
      readable = tail.ec == std::errc();
      stop = tail.ptr;
    }
    if (!readable || (stop != end && *stop != ',')) {
      return invalid_argument("'{}' is no list of layer ranges; write them as 0-5,6-11,12", text.substr(0, 256));
    }
    if (first != next || last < first || last >= spec.model.layers) {
      return invalid_argument("stage {} has layers {}-{}: the ranges must tile the layers 0-{} in order; this one begins at {}",
                              layers.size(), first, last, spec.model.layers - 1, next);
    }
    layers.push_back(last - first + 1);
    next = last + 1;
    if (stop == end) break;
    at = stop + 1;
  }
  if (next != spec.model.layers) {
    return invalid_argument("the ranges end at layer {}, the last layer of the model is {}", next - 1, spec.model.layers - 1);
  }
  if (layers.size() != spec.pipeline.stages) {
    return invalid_argument("{} ranges for a run with {} stages; the number of stages can't change in a running run",
                            layers.size(), spec.pipeline.stages);
  }
  return layers;
}

bool same_layout(const RunSpec& a, const RunSpec& b) {
  const auto layout = [](const RunSpec& spec) {
    Encoder encoder;
    encoder.write(spec.model);
    encoder.write(spec.boundary);
    encoder.write(spec.pipeline.stages);
    encoder.write(spec.pipeline.stage_layers);
    encoder.write(spec.training.seed);
    encoder.write(spec.training.microbatch_size);
    encoder.write(spec.training.beta1);
    encoder.write(spec.training.beta2);
    encoder.write(spec.training.epsilon);
    encoder.write(spec.training.weight_decay);
    encoder.write(spec.training.clip_norm);
    encoder.write(spec.merge.block_values);
    encoder.write(spec.merge.optimizer_moments);
    return encoder.take();
  };
  return layout(a) == layout(b);
}

std::string differing_sections(const RunSpec& a, const RunSpec& b) {
  std::string names;
  const auto compare = [&](const char* name, const auto& of_a, const auto& of_b) {
    if (encode(of_a) != encode(of_b)) names += (names.empty() ? "" : ", ") + std::string(name);
  };
  compare("run", a.name, b.name);
  compare("model", a.model, b.model);
  compare("pipeline", a.pipeline, b.pipeline);
  compare("training", a.training, b.training);
  compare("boundary", a.boundary, b.boundary);
  compare("merge", a.merge, b.merge);
  compare("timeouts", a.timeouts, b.timeouts);
  compare("checkpoint", a.checkpoint, b.checkpoint);
  compare("audit", a.audit, b.audit);
  return names;
}

}  // namespace tessera::core
