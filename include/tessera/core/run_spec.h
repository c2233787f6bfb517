// What a run is: everything all its nodes must agree on. The config module reads it from YAML, the orchestrator hands it
// to every node at registration (encode), and nobody uses one that validate() refused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/codec.h"
#include "tessera/base/status.h"

namespace tessera::core {

enum class BoundaryKind : uint8_t { kNone = 0, kIota = 1, kResidual = 2, kAnchored = 3 };

struct ModelSpec {
  uint32_t layers = 6;
  uint32_t width = 256;        // d
  uint32_t heads = 4;          // width is a multiple of heads; width / heads is even
  uint32_t kv_heads = 4;       // divides heads
  uint32_t ffn_width = 704;
  uint32_t vocab = 256;        // of the tokenizer; the largest token id + 1
  uint32_t context = 128;      // T
  double rope_theta = 10000;
  double norm_epsilon = 1e-5;
  double init_std = 0.02;
  bool embedding_norm = true;  // RMS-normalise the embedding (no weight)
  template <class A>
  void fields(A& a) {
    a("layers", layers)("width", width)("heads", heads)("kv_heads", kv_heads)("ffn_width", ffn_width)(
        "vocab", vocab)("context", context)("rope_theta", rope_theta)("norm_epsilon", norm_epsilon)(
        "init_std", init_std)("embedding_norm", embedding_norm);
  }
};

struct PipelineSpec {
  uint32_t stages = 3;
  uint32_t miners_per_stage = 2;       // how many the run waits for before it starts
  std::vector<uint32_t> stage_layers;  // layers of each stage; empty: as even as possible, earlier stages first
  uint32_t max_in_flight = 4;          // microbatches a head miner has under way
  double random_pathway_share = 0.1;   // leases whose proposed pathway is uniform random
  uint32_t peers_per_miner = 64;       // miners of a neighbouring stage that one is told of, about
  double rebalance_gain = 0.15;        // in a running run a miner is moved only for a larger gain of throughput; 0: never
  uint32_t rebalance_patience = 20;    // and only when so many epoch boundaries in a row wanted a miner for the same stage
  template <class A>
  void fields(A& a) {
    a("stages", stages)("miners_per_stage", miners_per_stage)("stage_layers", stage_layers)(
        "max_in_flight", max_in_flight)("random_pathway_share", random_pathway_share)("peers_per_miner", peers_per_miner)(
        "rebalance_gain", rebalance_gain)("rebalance_patience", rebalance_patience);
  }
};

enum class OptimizerKind : uint8_t { kAdamW = 0, kNAdam = 1, kMuon = 2 };
enum class LrDecay : uint8_t { kConstant = 0, kLinear = 1, kCosine = 2 };

// What a stage keeps of a microbatch between its forward and its backward pass. Less memory for more
// computation: kBlock keeps the layers' inputs and computes each layer once more, kFull keeps the
// stage's input only and computes the whole stage once more.
enum class Recompute : uint8_t { kOff = 0, kBlock = 1, kFull = 2 };

// The numbers that the layers' matrix products read: 16-bit floats (fp32 on a CPU), or 8-bit ones with
// a power of two a tensor (kernels/fp8.h). Sums are in fp32 either way; embedding, boundary and output
// head stay as they are.
enum class MatrixProducts : uint8_t { kBf16 = 0, kFp8 = 1 };

struct TrainingSpec {
  uint64_t seed = 1;
  uint64_t steps = 100;                // local optimizer steps of one replica, planned
  uint32_t microbatch_size = 8;        // B, sequences
  uint32_t microbatches_per_step = 4;  // accumulated by a miner before it steps
  bool synchronous = false;            // lease no microbatch of a step before the step before is complete everywhere
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  double learning_rate = 1e-3;
  double min_learning_rate_ratio = 0.1;
  uint64_t warmup_steps = 20;
  LrDecay decay = LrDecay::kCosine;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;           // matrices only
  double clip_norm = 1.0;              // global norm over the stage; 0: off
  Recompute recompute = Recompute::kOff;
  MatrixProducts matrix_products = MatrixProducts::kBf16;
  bool deterministic = false;          // the same bits in every run on the same kind of device
  uint32_t local_checkpoint_steps = 8; // local steps between a miner's checkpoints in its own folder; 0: none
  double nadam_momentum_decay = 0.004;
  double muon_learning_rate = 0.02;    // of the layers' matrices, with the schedule of learning_rate
  double muon_momentum = 0.95;
  double muon_weight_decay = 0.005;    // times muon_learning_rate
  template <class A>
  void fields(A& a) {
    a("seed", seed)("steps", steps)("microbatch_size", microbatch_size)(
        "microbatches_per_step", microbatches_per_step)("synchronous", synchronous)(
        "optimizer", optimizer)("learning_rate", learning_rate)(
        "min_learning_rate_ratio", min_learning_rate_ratio)("warmup_steps", warmup_steps)(
        "decay", decay)("beta1", beta1)("beta2", beta2)("epsilon", epsilon)(
        "weight_decay", weight_decay)("clip_norm", clip_norm)(
        "recompute", recompute)("matrix_products", matrix_products)(
        "deterministic", deterministic)(
        "local_checkpoint_steps", local_checkpoint_steps)(
        "nadam_momentum_decay", nadam_momentum_decay)("muon_learning_rate", muon_learning_rate)(
        "muon_momentum", muon_momentum)("muon_weight_decay", muon_weight_decay);
  }
};

struct BoundarySpec {
  BoundaryKind kind = BoundaryKind::kAnchored;
  Codec codec = Codec::kInt4;
  double compression = 128;   // wanted ratio to bf16; picks rank; ignored for kind none
  uint32_t rank = 0;          // r, the boundary width; 0: from compression. For kind none always the model's width
  uint32_t anchor_rank = 0;   // 0: a full V x d anchor table; else factorised V x a, a x d
  template <class A>
  void fields(A& a) {
    a("kind", kind)("codec", codec)("compression", compression)("rank", rank)("anchor_rank", anchor_rank);
  }
};

// What becomes of a miner's optimizer moments at a merge: they stay; begin with zeros; are the participants' mean.
enum class MergeMoments : uint8_t { kLocal = 0, kReset = 1, kAverage = 2 };

struct MergeSpec {
  bool enabled = true;
  uint32_t min_microbatches = 32;     // B_min of a miner since its last merge
  double quorum = 0.8;                // share of a stage's live miners that must have B_min
  double outer_learning_rate = 0.7;
  double outer_momentum = 0.9;
  uint32_t max_staleness = 4;         // epochs
  uint32_t block_values = 16384;      // values of one transfer block
  Codec upload_format = Codec::kInt8; // of pseudo-gradients: to nearest, with error feedback
  Codec result_format = Codec::kInt8; // of reduced shards: rounded stochastically
  uint32_t outer_momentum_warmup = 0; // merges over which the outer momentum grows to its value
  double gate_norm_ratio = 8;         // an upload's norm may be this many times, or one such part of, the median
  double gate_cosine = -0.1;          // least cosine between an upload and the mean of the others
  double sample_share = 0.05;         // of the shards on which both owners agree: recomputed all the same
  double trim_share = 0;              // of the uploads, left out at either end of every value; 0: the weighted mean
  MergeMoments optimizer_moments = MergeMoments::kLocal;
  template <class A>
  void fields(A& a) {
    a("enabled", enabled)("min_microbatches", min_microbatches)("quorum", quorum)(
        "outer_learning_rate", outer_learning_rate)("outer_momentum", outer_momentum)(
        "max_staleness", max_staleness)("block_values", block_values)("upload_format", upload_format)(
        "result_format", result_format)("outer_momentum_warmup", outer_momentum_warmup)(
        "gate_norm_ratio", gate_norm_ratio)("gate_cosine", gate_cosine)("sample_share", sample_share)(
        "trim_share", trim_share)("optimizer_moments", optimizer_moments);
  }
};

struct TimeoutSpec {  // milliseconds
  uint32_t lease_ms = 60000;       // a microbatch not complete by then is issued again
  uint32_t miner_lost_ms = 5000;   // silence after which a miner counts as lost
  uint32_t peer_ms = 5000;         // one frame to a peer
  uint32_t merge_phase_ms = 20000; // of each phase of a merge
  uint32_t upload_grace_ms = 3000; // for the others when merge.quorum of a merge's uploads are there
  uint32_t sync_ms = 200;          // how often a miner reports
  template <class A>
  void fields(A& a) {
    a("lease_ms", lease_ms)("miner_lost_ms", miner_lost_ms)("peer_ms", peer_ms)(
        "merge_phase_ms", merge_phase_ms)("upload_grace_ms", upload_grace_ms)("sync_ms", sync_ms);
  }
};

struct CheckpointSpec {
  uint64_t every_microbatches = 0;  // 0: only at the end of the run and when it is stopped
  uint32_t keep = 2;
  template <class A>
  void fields(A& a) {
    a("every_microbatches", every_microbatches)("keep", keep);
  }
};

// Re-running a secret part of the miners' work (docs/trust.md). Thresholds: what honest noise never reaches.
struct AuditSpec {
  bool enabled = false;              // off: miners commit to nothing and store no payloads
  double share = 0.05;               // of the segments
  double upload_share = 0.8;         // of the uploads for merges, by the segment that the snapshot was taken in
  double auditable_share = 0.25;     // of a miner's last segments that must be such that they can be run again
  uint32_t segment_steps = 8;        // local steps from one commitment to the next, at most; a merge ends a segment too
  uint32_t lease_ms = 600000;        // an audit without a result by then goes to another validator
  bool exact = false;                // outputs must have the same bits; where all devices are of one kind
  double relative_error = 2e-2;      // of activations and boundary gradients
  double cosine = 0.9995;
  double norm_deviation = 0.02;      // the ratio of the norms is within 1 +- this
  double rounding_flips = 0.04;      // share of integer codes that honest noise rounds the other way
  double delta_cosine = 0.99;        // of the change of the weights over a segment
  double delta_norm_deviation = 0.1;
  double loss_tolerance = 0.02;      // relative; absolute below a loss of 1
  uint32_t retention_epochs = 2;     // payloads and states of so many epochs stay in the blob store
  uint64_t retention_bytes = uint64_t{64} << 30;  // and no more than this; the oldest go first
  template <class A>
  void fields(A& a) {
    a("enabled", enabled)("share", share)("upload_share", upload_share)("auditable_share", auditable_share)("segment_steps", segment_steps)("lease_ms", lease_ms)("exact", exact)(
        "relative_error", relative_error)("cosine", cosine)("norm_deviation", norm_deviation)(
        "rounding_flips", rounding_flips)("delta_cosine", delta_cosine)(
        "delta_norm_deviation", delta_norm_deviation)("loss_tolerance", loss_tolerance)(
        "retention_epochs", retention_epochs)("retention_bytes", retention_bytes);
  }
};

struct RunSpec {
  std::string name = "run";  // the YAML key is run.name
  ModelSpec model;
  PipelineSpec pipeline;
  TrainingSpec training;
  BoundarySpec boundary;
  MergeSpec merge;
  TimeoutSpec timeouts;
  CheckpointSpec checkpoint;
  AuditSpec audit;
  template <class A>
  void fields(A& a) {
    a("name", name)("model", model)("pipeline", pipeline)("training", training)("boundary", boundary)(
        "merge", merge)("timeouts", timeouts)("checkpoint", checkpoint)("audit", audit);
  }

  // Microbatches the run is planned for.
  uint64_t total_microbatches() const {
    return training.steps * training.microbatches_per_step * pipeline.miners_per_stage;
  }
  uint32_t tokens_per_microbatch() const { return training.microbatch_size * model.context; }
};

// Every limit and every cross-field rule; the error names the key as in the YAML ("pipeline.stages"). On success fills in
// what is derived: stage_layers, boundary.rank.
Status validate(RunSpec* spec);

// The largest r with r * bits + scale bits <= 16 * width / compression, where the codes of a token take whole bytes (as on
// the wire); 0 if there is none. validate() takes no more than the model's width of it.
uint32_t boundary_rank(uint32_t width, Codec codec, double compression);

struct LayerRange {
  uint32_t begin = 0;
  uint32_t end = 0;  // exclusive
};
// The layers of a stage of a validated spec.
LayerRange layers_of(const RunSpec& spec, StageIndex stage);

const char* name_of(BoundaryKind kind);
const char* name_of(Codec codec);

// Learning rate of optimizer step `step` (counted from 0): linear warm-up over warmup_steps, then the decay down to
// min_learning_rate_ratio at `steps`.
double learning_rate_at(const TrainingSpec& training, uint64_t step);

}  // namespace tessera::core
