#include "tessera/core/run_spec.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/key_limits.h"
#include "tessera/core/object.h"

namespace tessera::core {
namespace {

// A stage is a bit of a 64-bit mask wherever "which stages have done this" is kept.
constexpr uint32_t kMaxStages = 64;
constexpr uint32_t kMaxMicrobatchTokens = 1u << 20;
constexpr uint64_t kMaxBoundaryPayloadBytes = uint64_t{1} << 30;
// A block of a merge travels as one chunk of an object.
constexpr uint32_t kMaxBlockValues = kMaxChunkBytes / sizeof(float);
constexpr size_t kMaxNameBytes = 64;
constexpr uint32_t kDayMs = 86400000;

// A spec can come from the wire, where an enum is any number.
template <class Enum>
Status check_enum(const char* key, Enum value, Enum last) {
  if (value <= last) return ok_status();
  return invalid_argument("{}: {} stands for no known choice; the sender's version is another one",
                          key, static_cast<int>(value));
}

// The name becomes part of folder names and of metric labels.
Status check_name(const std::string& name) {
  const auto letter_or_digit = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  const bool allowed =
      !name.empty() && name.size() <= kMaxNameBytes && letter_or_digit(name.front()) &&
      std::all_of(name.begin(), name.end(),
                  [&](char c) { return letter_or_digit(c) || c == '.' || c == '_' || c == '-'; });
  if (allowed) return ok_status();
  return invalid_argument(
      "run.name: not allowed; it must be 1 to {} letters, digits, '.', '_' or '-', beginning with "
      "a letter or "
      "digit",
      kMaxNameBytes);
}

Status check_model(const ModelSpec& model) {
  TESSERA_RETURN_IF_ERROR(check_whole({{"model.layers", model.layers, 1, 1024},
                                       {"model.width", model.width, 2, 65536},
                                       {"model.heads", model.heads, 1, 1024},
                                       {"model.kv_heads", model.kv_heads, 1, 1024},
                                       {"model.ffn_width", model.ffn_width, 1, 1048576},
                                       {"model.vocab", model.vocab, 2, 4194304},
                                       {"model.context", model.context, 1, kMaxMicrobatchTokens}}));
  TESSERA_RETURN_IF_ERROR(
      check_real({{"model.rope_theta", model.rope_theta, 1, 1e9},
                  {"model.norm_epsilon", model.norm_epsilon, 0, 0.1, Ends::kOpenLow},
                  {"model.init_std", model.init_std, 0, 1, Ends::kOpenLow}}));
  if (model.width % model.heads != 0) {
    return invalid_argument(
        "model.heads: model.width {} is not a multiple of {}; every head needs the same width",
        model.width, model.heads);
  }
  if ((model.width / model.heads) % 2 != 0) {
    return invalid_argument(
        "model.heads: {} heads at model.width {} give a head width of {}, but rotary positions "
        "turn pairs of "
        "numbers and need an even one",
        model.heads, model.width, model.width / model.heads);
  }
  if (model.heads % model.kv_heads != 0) {
    return invalid_argument(
        "model.kv_heads: {} does not divide model.heads {}; every key-value head serves the same "
        "number of heads",
        model.kv_heads, model.heads);
  }
  return ok_status();
}

Status check_pipeline(const PipelineSpec& pipeline, uint32_t layers) {
  TESSERA_RETURN_IF_ERROR(
      check_whole({{"pipeline.stages", pipeline.stages, 1, kMaxStages},
                   {"pipeline.miners_per_stage", pipeline.miners_per_stage, 1, 1024},
                   {"pipeline.max_in_flight", pipeline.max_in_flight, 1, 1024},
                   {"pipeline.peers_per_miner", pipeline.peers_per_miner, 4, 100000},
                   {"pipeline.rebalance_patience", pipeline.rebalance_patience, 1, 10000}}));
  TESSERA_RETURN_IF_ERROR(
      check_real({{"pipeline.random_pathway_share", pipeline.random_pathway_share, 0, 1},
                  {"pipeline.rebalance_gain", pipeline.rebalance_gain, 0, 100}}));
  if (pipeline.stages > layers) {
    return invalid_argument(
        "pipeline.stages: {} stages can't share model.layers {}; every stage needs at least 1 "
        "layer",
        pipeline.stages, layers);
  }
  if (pipeline.stage_layers.empty()) return ok_status();
  if (pipeline.stage_layers.size() != pipeline.stages) {
    return invalid_argument(
        "pipeline.stage_layers: {} entries for pipeline.stages {}; give one for each stage, or [] "
        "for an even "
        "split",
        pipeline.stage_layers.size(), pipeline.stages);
  }
  uint64_t sum = 0;
  for (size_t stage = 0; stage < pipeline.stage_layers.size(); ++stage) {
    if (pipeline.stage_layers[stage] == 0) {
      return invalid_argument(
          "pipeline.stage_layers: stage {} has 0 layers; every stage needs at least 1", stage);
    }
    sum += pipeline.stage_layers[stage];
  }
  if (sum != layers) {
    return invalid_argument(
        "pipeline.stage_layers: the entries add up to {}, but model.layers is {}", sum, layers);
  }
  return ok_status();
}

Status check_training(const TrainingSpec& training) {
  TESSERA_RETURN_IF_ERROR(check_whole(
      {{"training.steps", training.steps, 1, 100000000},
       {"training.microbatch_size", training.microbatch_size, 1, 4096},
       {"training.microbatches_per_step", training.microbatches_per_step, 1, 4096},
       {"training.local_checkpoint_steps", training.local_checkpoint_steps, 0, 100000000},
       {"training.warmup_steps", training.warmup_steps, 0, 100000000}}));
  TESSERA_RETURN_IF_ERROR(
      check_enum("training.optimizer", training.optimizer, OptimizerKind::kMuon));
  TESSERA_RETURN_IF_ERROR(check_enum("training.decay", training.decay, LrDecay::kCosine));
  TESSERA_RETURN_IF_ERROR(check_enum("training.recompute", training.recompute, Recompute::kFull));
  TESSERA_RETURN_IF_ERROR(check_enum("training.matrix_products", training.matrix_products,
                                     MatrixProducts::kFp8));
  return check_real(
      {{"training.learning_rate", training.learning_rate, 0, 10, Ends::kOpenLow},
       {"training.min_learning_rate_ratio", training.min_learning_rate_ratio, 0, 1},
       {"training.beta1", training.beta1, 0, 1, Ends::kOpenHigh},
       {"training.beta2", training.beta2, 0, 1, Ends::kOpenHigh},
       {"training.epsilon", training.epsilon, 0, 1, Ends::kOpenLow},
       {"training.weight_decay", training.weight_decay, 0, 10},
       {"training.clip_norm", training.clip_norm, 0, 1000000},
       {"training.nadam_momentum_decay", training.nadam_momentum_decay, 0, 1},
       {"training.muon_learning_rate", training.muon_learning_rate, 0, 10, Ends::kOpenLow},
       {"training.muon_momentum", training.muon_momentum, 0, 1, Ends::kOpenHigh},
       {"training.muon_weight_decay", training.muon_weight_decay, 0, 10}});
}

Status check_merge(const MergeSpec& merge) {
  TESSERA_RETURN_IF_ERROR(
      check_whole({{"merge.min_microbatches", merge.min_microbatches, 1, 1000000}, {"merge.max_staleness", merge.max_staleness, 1, 64},
                   {"merge.block_values", merge.block_values, 256, kMaxBlockValues},
                   {"merge.outer_momentum_warmup", merge.outer_momentum_warmup, 0, 1000000}}));
  if (merge.block_values % 256 != 0) return invalid_argument("merge.block_values: {} is no multiple of 256", merge.block_values);
  TESSERA_RETURN_IF_ERROR(check_enum("merge.upload_format", merge.upload_format, Codec::kInt4));
  TESSERA_RETURN_IF_ERROR(check_enum("merge.result_format", merge.result_format, Codec::kInt4));
  TESSERA_RETURN_IF_ERROR(check_enum("merge.optimizer_moments", merge.optimizer_moments, MergeMoments::kAverage));
  return check_real({{"merge.quorum", merge.quorum, 0, 1, Ends::kOpenLow},
                     {"merge.outer_learning_rate", merge.outer_learning_rate, 0, 10, Ends::kOpenLow},
                     {"merge.outer_momentum", merge.outer_momentum, 0, 1, Ends::kOpenHigh},
                     {"merge.gate_norm_ratio", merge.gate_norm_ratio, 1, 1000000}, {"merge.gate_cosine", merge.gate_cosine, -1, 1},
                     {"merge.sample_share", merge.sample_share, 0, 1}, {"merge.trim_share", merge.trim_share, 0, 0.49}});
}

Status check_timeouts(const TimeoutSpec& timeouts) {
  TESSERA_RETURN_IF_ERROR(
      check_whole({{"timeouts.lease_ms", timeouts.lease_ms, 10, kDayMs},
                   {"timeouts.miner_lost_ms", timeouts.miner_lost_ms, 10, kDayMs},
                   {"timeouts.peer_ms", timeouts.peer_ms, 10, kDayMs},
                   {"timeouts.merge_phase_ms", timeouts.merge_phase_ms, 10, kDayMs},
                   {"timeouts.upload_grace_ms", timeouts.upload_grace_ms, 0, kDayMs},
                   {"timeouts.sync_ms", timeouts.sync_ms, 1, kDayMs}}));
  if (timeouts.sync_ms > timeouts.miner_lost_ms / 2) {
    return invalid_argument(
        "timeouts.miner_lost_ms: {} is less than twice timeouts.sync_ms {}; one late report would "
        "make a healthy "
        "miner count as lost",
        timeouts.miner_lost_ms, timeouts.sync_ms);
  }
  return ok_status();
}

Status check_audit(const AuditSpec& audit) {
  TESSERA_RETURN_IF_ERROR(
      check_whole({{"audit.segment_steps", audit.segment_steps, 1, 4096},
                   {"audit.lease_ms", audit.lease_ms, 10, kDayMs},
                   {"audit.retention_epochs", audit.retention_epochs, 1, 1000},
                   {"audit.retention_bytes", audit.retention_bytes, 1u << 20, uint64_t{1} << 50}}));
  return check_real({{"audit.share", audit.share, 0, 1},
                     {"audit.upload_share", audit.upload_share, 0, 1},
                     {"audit.auditable_share", audit.auditable_share, 0, 1},
                     {"audit.relative_error", audit.relative_error, 0, 1, Ends::kOpenLow},
                     {"audit.cosine", audit.cosine, 0, 1},
                     {"audit.norm_deviation", audit.norm_deviation, 0, 1, Ends::kOpenLow},
                     {"audit.rounding_flips", audit.rounding_flips, 0, 1},
                     {"audit.delta_cosine", audit.delta_cosine, 0, 1},
                     {"audit.delta_norm_deviation", audit.delta_norm_deviation, 0, 1, Ends::kOpenLow},
                     {"audit.loss_tolerance", audit.loss_tolerance, 0, 1, Ends::kOpenLow}});
}

uint32_t payload_bits(Codec codec, uint32_t rank) {
  return static_cast<uint32_t>(8 * payload_bytes(codec, 1, rank));
}

// Says what would work instead: a width, a compression, or other codecs.
Status no_rank(const ModelSpec& model, const BoundarySpec& boundary) {
  const uint32_t need_bits = payload_bits(boundary.codec, 1);
  const double wanted = boundary.compression;
  // The next width that keeps whole, even heads.
  const uint64_t step = 2ull * model.heads;
  const auto least = static_cast<uint64_t>(std::ceil(need_bits * wanted / 16));
  const uint64_t width = (least + step - 1) / step * step;
  std::string codecs;
  for (const Codec codec : {Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
    if (boundary_rank(model.width, codec, wanted) == 0) continue;
    codecs += fmt::format(", or boundary.codec {}", name_of(codec));
  }
  const double most = std::floor(16.0 * model.width / need_bits * 100) / 100;
  return invalid_argument(
      "boundary.compression: {}x can't be had with boundary.codec {} at model.width {}: it leaves "
      "{:.4g} bits a "
      "token, and the smallest boundary needs {}; use model.width {} or more, or "
      "boundary.compression {:g} or "
      "less{}",
      wanted, name_of(boundary.codec), model.width, 16.0 * model.width / wanted, need_bits, width,
      most, codecs);
}

Status derive_rank(RunSpec* spec) {
  BoundarySpec& boundary = spec->boundary;
  const uint32_t width = spec->model.width;
  if (boundary.kind == BoundaryKind::kNone) {
    boundary.rank = width;
    return ok_status();
  }
  if (boundary.rank > width) {
    return invalid_argument(
        "boundary.rank: {} is more than model.width {}, so it would carry nothing more; 0 picks it "
        "from "
        "boundary.compression",
        boundary.rank, width);
  }
  if (boundary.rank > 0) return ok_status();
  const uint32_t rank = boundary_rank(width, boundary.codec, boundary.compression);
  if (rank == 0) return no_rank(spec->model, boundary);
  // A narrow codec could carry more numbers than there are; the ratio is then better than asked
  // for.
  boundary.rank = std::min(rank, width);
  return ok_status();
}

Status check_boundary(RunSpec* spec) {
  const BoundarySpec& boundary = spec->boundary;
  TESSERA_RETURN_IF_ERROR(check_enum("boundary.kind", boundary.kind, BoundaryKind::kAnchored));
  TESSERA_RETURN_IF_ERROR(check_enum("boundary.codec", boundary.codec, Codec::kInt4));
  TESSERA_RETURN_IF_ERROR(check_real({{"boundary.compression", boundary.compression, 1, 65536}}));
  if (boundary.anchor_rank > spec->model.width) {
    return invalid_argument(
        "boundary.anchor_rank: {} is more than model.width {}, so the factors would be larger than "
        "the table; 0 "
        "takes the full table",
        boundary.anchor_rank, spec->model.width);
  }
  return derive_rank(spec);
}

// Products of several keys; each alone is within its limit here.
Status check_sizes(const RunSpec& spec) {
  const uint64_t tokens = uint64_t{spec.training.microbatch_size} * spec.model.context;
  if (tokens > kMaxMicrobatchTokens) {
    return invalid_argument(
        "training.microbatch_size: {} sequences of model.context {} are {} tokens, more than the "
        "{} that a "
        "microbatch may have; raise training.microbatches_per_step instead",
        spec.training.microbatch_size, spec.model.context, tokens, kMaxMicrobatchTokens);
  }
  const uint64_t payload = payload_bytes(spec.boundary.codec, tokens, spec.boundary.rank);
  if (payload > kMaxBoundaryPayloadBytes) {
    return invalid_argument(
        "training.microbatch_size: a boundary payload of {} tokens x {} numbers in {} has {} "
        "bytes, more than the "
        "{} that a frame may have; lower it, or compress more",
        tokens, spec.boundary.rank, name_of(spec.boundary.codec), payload,
        kMaxBoundaryPayloadBytes);
  }
  return ok_status();
}

// Products of 8-bit floats take sides of whole multiples of 16.
Status check_products(const RunSpec& spec) {
  if (spec.training.matrix_products != MatrixProducts::kFp8) return ok_status();
  const ModelSpec& model = spec.model;
  const uint32_t key_width = model.width / model.heads * model.kv_heads;
  for (const auto& [key, value] : {std::pair{"model.width", model.width},
                                   std::pair{"the width of all keys", key_width},
                                   std::pair{"model.ffn_width", model.ffn_width},
                                   std::pair{"model.context", model.context}}) {
    if (value % 16 == 0) continue;
    return invalid_argument(
        "training.matrix_products: fp8 takes sizes that are multiples of 16, but {} is {}", key, value);
  }
  if (spec.boundary.kind == BoundaryKind::kIota && spec.pipeline.stages > 1) {
    return invalid_argument(
        "training.matrix_products: fp8 does not go with boundary.kind iota; take bf16");
  }
  return ok_status();
}

void derive_stage_layers(RunSpec* spec) {
  PipelineSpec& pipeline = spec->pipeline;
  if (!pipeline.stage_layers.empty()) return;
  for (uint32_t stage = 0; stage < pipeline.stages; ++stage) {
    const uint32_t extra = stage < spec->model.layers % pipeline.stages ? 1 : 0;
    pipeline.stage_layers.push_back(spec->model.layers / pipeline.stages + extra);
  }
}

}  // namespace

Status validate(RunSpec* spec) {
  TESSERA_RETURN_IF_ERROR(check_name(spec->name));
  TESSERA_RETURN_IF_ERROR(check_model(spec->model));
  TESSERA_RETURN_IF_ERROR(check_pipeline(spec->pipeline, spec->model.layers));
  TESSERA_RETURN_IF_ERROR(check_training(spec->training));
  TESSERA_RETURN_IF_ERROR(check_merge(spec->merge));
  TESSERA_RETURN_IF_ERROR(check_timeouts(spec->timeouts));
  TESSERA_RETURN_IF_ERROR(check_whole(
      {{"checkpoint.every_microbatches", spec->checkpoint.every_microbatches, 0, 1000000000000},
       {"checkpoint.keep", spec->checkpoint.keep, 1, 1000}}));
  TESSERA_RETURN_IF_ERROR(check_audit(spec->audit));
  RunSpec derived = *spec;  // what is refused stays as it was
  TESSERA_RETURN_IF_ERROR(check_boundary(&derived));
  TESSERA_RETURN_IF_ERROR(check_sizes(derived));
  TESSERA_RETURN_IF_ERROR(check_products(derived));
  derive_stage_layers(&derived);
  *spec = std::move(derived);
  return ok_status();
}

uint32_t boundary_rank(uint32_t width, Codec codec, double compression) {
  if (!(compression > 0)) return 0;
  const double scale_bits = has_scales(codec) ? 16 : 0;
  const double code_bytes = std::floor((16.0 * width / compression - scale_bits) / 8);
  if (!(code_bytes > 0)) return 0;
  const double rank = std::floor(code_bytes * 8 / bits_of(codec));
  return rank >= UINT32_MAX ? UINT32_MAX : static_cast<uint32_t>(rank);
}

LayerRange layers_of(const RunSpec& spec, StageIndex stage) {
  const std::vector<uint32_t>& layers = spec.pipeline.stage_layers;
  TESSERA_CHECK(stage < layers.size());
  const uint32_t begin = std::accumulate(layers.begin(), layers.begin() + stage, uint32_t{0});
  return {begin, begin + layers[stage]};
}

const char* name_of(BoundaryKind kind) {
  switch (kind) {
    case BoundaryKind::kNone:
      return "none";
    case BoundaryKind::kIota:
      return "iota";
    case BoundaryKind::kResidual:
      return "residual";
    case BoundaryKind::kAnchored:
      return "anchored";
  }
  return "unknown";
}

const char* name_of(Codec codec) {
  switch (codec) {
    case Codec::kFp32:
      return "fp32";
    case Codec::kBf16:
      return "bf16";
    case Codec::kInt8:
      return "int8";
    case Codec::kInt4:
      return "int4";
  }
  return "unknown";
}

double learning_rate_at(const TrainingSpec& training, uint64_t step) {
  const double peak = training.learning_rate;
  if (step < training.warmup_steps) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(training.warmup_steps);
  }
  if (training.decay == LrDecay::kConstant) return peak;
  const double floor = peak * training.min_learning_rate_ratio;
  if (step >= training.steps) return floor;
  // warmup_steps <= step < steps here.
  const double progress = static_cast<double>(step - training.warmup_steps) /
                          static_cast<double>(training.steps - training.warmup_steps);
  const double remaining = training.decay == LrDecay::kLinear
                               ? 1 - progress
                               : 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return floor + (peak - floor) * remaining;
}

}  // namespace tessera::core
