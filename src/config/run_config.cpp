#include "tessera/config/run_config.h"

#include "config/field.h"
#include "config/loader.h"
#include "config/run_table.h"

namespace tessera::config {
namespace {

using core::BoundaryKind;
using core::LrDecay;
using core::MatrixProducts;
using core::OptimizerKind;
using core::Recompute;

constexpr double kMaxValidationShare = 0.5;
constexpr uint32_t kByteVocab = 256;

// The ranges are core::validate()'s; a test holds the two against each other.
void add_model(core::ModelSpec* model, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("model.layers", &model->layers, "1 to 1024",
                "transformer layers in all stages together"),
          field("model.width", &model->width, "2 to 65536",
                "numbers of a token's hidden state (d); a multiple of model.heads"),
          field("model.heads", &model->heads, "1 to 1024",
                "query heads of a layer; model.width / heads must be even"),
          field("model.kv_heads", &model->kv_heads, "1 to 1024",
                "key-value heads; divides model.heads"),
          field("model.ffn_width", &model->ffn_width, "1 to 1048576",
                "hidden width of the SwiGLU feed-forward part"),
          field("model.vocab", &model->vocab, "2 to 4194304",
                "token ids of the tokenizer; 256 for bytes"),
          field("model.context", &model->context, "1 to 1048576", "tokens of a sequence (T)"),
          field("model.rope_theta", &model->rope_theta, "1 to 1000000000",
                "base of the rotary position frequencies"),
          field("model.norm_epsilon", &model->norm_epsilon, "above 0 and at most 0.1",
                "added to the mean square in RMSNorm"),
          field("model.init_std", &model->init_std, "above 0 and at most 1",
                "standard deviation of the initial weights"),
          field("model.embedding_norm", &model->embedding_norm, "",
                "RMS-normalise the token embedding; lowers the loss"),
      });
}

void add_pipeline(core::PipelineSpec* pipeline, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("pipeline.stages", &pipeline->stages, "1 to 64",
                "slices that the layers are cut into; at most model.layers"),
          field("pipeline.miners_per_stage", &pipeline->miners_per_stage, "1 to 1024",
                "miners of every stage that the run waits for before it starts"),
          field("pipeline.stage_layers", &pipeline->stage_layers,
                "one entry a stage, adding up to model.layers",
                "layers of each stage; [] splits as evenly as possible, earlier stages first"),
          field("pipeline.max_in_flight", &pipeline->max_in_flight, "1 to 1024",
                "microbatches that a head miner has under way"),
          field("pipeline.random_pathway_share", &pipeline->random_pathway_share, "0 to 1",
                "share of leases whose pathway is drawn uniformly, for attribution; the others "
                "follow speed"),
          field("pipeline.peers_per_miner", &pipeline->peers_per_miner, "4 to 100000",
                "miners of each neighbouring stage that a miner is told of, about; more than that "
                "form neighbourhoods"),
          field("pipeline.rebalance_gain", &pipeline->rebalance_gain, "0 to 100",
                "a miner is moved to another stage only if the run's throughput rises by more than "
                "this share; 0 moves nobody once the run has begun"),
          field("pipeline.rebalance_patience", &pipeline->rebalance_patience, "1 to 10000",
                "and only if that was so at this many epoch boundaries in a row, of any stage: times "
                "are noisy, and a move costs the miner's steps since its last merge"),
      });
}

void add_training(core::TrainingSpec* training, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("training.seed", &training->seed, "",
                "of the initial weights, the data order and stochastic rounding"),
          field("training.steps", &training->steps, "1 to 100000000",
                "local optimizer steps of one miner, planned"),
          field("training.microbatch_size", &training->microbatch_size, "1 to 4096",
                "sequences of a microbatch (B); with model.context at most 1048576 tokens"),
          field("training.microbatches_per_step", &training->microbatches_per_step, "1 to 4096",
                "microbatches that a miner accumulates before it steps"),
          field("training.synchronous", &training->synchronous, "",
                "lease no microbatch of a step before the step before is complete everywhere; for "
                "comparisons"),
          field("training.optimizer",
                Choice<OptimizerKind>{&training->optimizer,
                                      {{"adamw", OptimizerKind::kAdamW},
                                       {"nadam", OptimizerKind::kNAdam},
                                       {"muon", OptimizerKind::kMuon}}},
                "",
                "of the local steps; muon is for the layers' matrices, with adamw for everything "
                "else"),
          field("training.learning_rate", &training->learning_rate, "above 0 and at most 10",
                "peak of the schedule"),
          field("training.min_learning_rate_ratio", &training->min_learning_rate_ratio, "0 to 1",
                "what is left of the peak at training.steps"),
          field("training.warmup_steps", &training->warmup_steps, "0 to 100000000",
                "steps of linear warm-up"),
          field("training.decay",
                Choice<LrDecay>{&training->decay,
                                {{"constant", LrDecay::kConstant},
                                 {"linear", LrDecay::kLinear},
                                 {"cosine", LrDecay::kCosine}}},
                "", "of the learning rate after the warm-up"),
          field("training.beta1", &training->beta1, "at least 0 and below 1",
                "Adam: decay of the first moment"),
          field("training.beta2", &training->beta2, "at least 0 and below 1",
                "Adam: decay of the second moment"),
          field("training.epsilon", &training->epsilon, "above 0 and at most 1",
                "Adam: added to the denominator"),
          field("training.weight_decay", &training->weight_decay, "0 to 10",
                "decoupled, on matrices only"),
          field("training.clip_norm", &training->clip_norm, "0 to 1000000",
                "largest global gradient norm over a stage; 0 clips nothing"),
          field("training.recompute",
                Choice<Recompute>{&training->recompute,
                                  {{"off", Recompute::kOff},
                                   {"block", Recompute::kBlock},
                                   {"full", Recompute::kFull}}},
                "",
                "less memory for more computation: block keeps only the layers' inputs of a "
                "microbatch in flight, full only the stage's; on GPUs"),
          field("training.matrix_products",
                Choice<MatrixProducts>{&training->matrix_products,
                                       {{"bf16", MatrixProducts::kBf16},
                                        {"fp8", MatrixProducts::kFp8}}},
                "",
                "numbers that the layers' matrix products read; fp8 is faster from a width of about "
                "2048 on and trains a little differently; it takes GPUs that have it (a CPU "
                "imitates it) and miners of one GPU"),
          field("training.deterministic", &training->deterministic, "",
                "the same bits in every run on the same kind of device; slower on GPUs"),
          field("training.local_checkpoint_steps", &training->local_checkpoint_steps,
                "0 to 100000000",
                "local steps after which a miner writes its own state to its folder, so that a "
                "restart loses no more; 0: never"),
          field("training.nadam_momentum_decay", &training->nadam_momentum_decay, "0 to 1",
                "NAdam: how fast the momentum warms up to training.beta1"),
          field("training.muon_learning_rate", &training->muon_learning_rate,
                "above 0 and at most 10",
                "Muon: peak for the layers' matrices, with the same schedule as "
                "training.learning_rate; times sqrt(max(1, rows / columns)) of a matrix"),
          field("training.muon_momentum", &training->muon_momentum, "at least 0 and below 1",
                "Muon: Nesterov momentum"),
          field("training.muon_weight_decay", &training->muon_weight_decay, "0 to 10",
                "Muon: decoupled, times the learning rate of Muon, so a fraction of "
                "training.weight_decay does the same"),
      });
}

void add_boundary(core::BoundarySpec* boundary, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("boundary.kind",
                Choice<BoundaryKind>{&boundary->kind,
                                     {{"none", BoundaryKind::kNone},
                                      {"iota", BoundaryKind::kIota},
                                      {"residual", BoundaryKind::kResidual},
                                      {"anchored", BoundaryKind::kAnchored}}},
                "",
                "how activations are compressed between stages; none sends the whole width through "
                "the codec"),
          field("boundary.codec",
                Choice<Codec>{&boundary->codec,
                              {{"fp32", Codec::kFp32},
                               {"bf16", Codec::kBf16},
                               {"int8", Codec::kInt8},
                               {"int4", Codec::kInt4}}},
                "", "number format on the wire; int8 and int4 add one fp16 scale a token"),
          field("boundary.compression", Ratio{&boundary->compression}, "1 to 65536",
                "wanted ratio of a bf16 tensor of the full width to the payload; picks the rank; "
                "kind none ignores it"),
          field("boundary.rank", &boundary->rank, "0 to model.width",
                "numbers a token on the wire (r); 0 takes them from boundary.compression; kind "
                "none always sends the width"),
          field("boundary.anchor_rank", &boundary->anchor_rank, "0 to model.width",
                "kind anchored: 0 keeps a full token table, a > 0 factors it into vocab x a and a "
                "x width to save memory"),
      });
}

Field merge_format(const char* key, Codec* format, const char* about) {
  return field(key,
               Choice<Codec>{format,
                             {{"fp32", Codec::kFp32}, {"bf16", Codec::kBf16}, {"int8", Codec::kInt8}, {"int4", Codec::kInt4}}},
               "", about);
}

void add_merge(core::MergeSpec* merge, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("merge.enabled", &merge->enabled, "",
                "average the miners of a stage from time to time"),
          field("merge.min_microbatches", &merge->min_microbatches, "1 to 1000000",
                "microbatches since its last merge that qualify a miner for the next (B_min)"),
          field("merge.quorum", &merge->quorum, "above 0 and at most 1",
                "share of a stage's live miners that must qualify before a merge starts"),
          field("merge.outer_learning_rate", &merge->outer_learning_rate, "above 0 and at most 10",
                "of the outer Nesterov step"),
          field("merge.outer_momentum", &merge->outer_momentum, "at least 0 and below 1",
                "of the outer Nesterov step"),
          field("merge.max_staleness", &merge->max_staleness, "1 to 64",
                "epochs after which work that missed its merges is dropped"),
          field("merge.block_values", &merge->block_values, "256 to 262144",
                "values of one transfer block; a multiple of 256"),
          merge_format("merge.upload_format", &merge->upload_format,
                       "number format of pseudo-gradients; int8 and int4 have one scale for 256 values, and what rounding "
                       "leaves out goes into the next upload"),
          merge_format("merge.result_format", &merge->result_format,
                       "number format of merged shards, rounded stochastically"),
          field("merge.outer_momentum_warmup", &merge->outer_momentum_warmup, "0 to 1000000",
                "merges of a stage over which the outer momentum grows from 0 to its value"),
          field("merge.gate_norm_ratio", &merge->gate_norm_ratio, "1 to 1000000",
                "an upload counts only if its norm is within this factor of the median of all"),
          field("merge.gate_cosine", &merge->gate_cosine, "-1 to 1",
                "an upload counts only if its cosine to the mean of the others is at least this"),
          field("merge.sample_share", &merge->sample_share, "0 to 1",
                "share of the shards on which both owners agree that the orchestrator recomputes secretly"),
          field("merge.trim_share", &merge->trim_share, "0 to 0.49",
                "share of the uploads left out at either end of every single value; 0 takes the weighted mean of all"),
          field("merge.optimizer_moments",
                Choice<core::MergeMoments>{&merge->optimizer_moments,
                                           {{"local", core::MergeMoments::kLocal},
                                            {"reset", core::MergeMoments::kReset},
                                            {"average", core::MergeMoments::kAverage}}},
                "",
                "what becomes of a miner's optimizer moments when it takes a merge over; average merges them like the weights, "
                "for three times the bytes"),
      });
}

void add_audit(core::AuditSpec* audit, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("audit.enabled", &audit->enabled, "",
                "miners commit to their state and store what they send and receive, and validators "
                "re-run a secret part of it"),
          field("audit.share", &audit->share, "0 to 1", "of the segments that are audited"),
          field("audit.upload_share", &audit->upload_share, "0 to 1",
                "of the uploads for merges that are audited, by the segment of their snapshot"),
          field("audit.auditable_share", &audit->auditable_share, "0 to 1",
                "least share of a miner's last 1024 receipts or more that can be run again; below "
                "it the miner is named"),
          field("audit.segment_steps", &audit->segment_steps, "1 to 4096",
                "local steps from one commitment of a miner to the next; a merge comes between"),
          field("audit.lease_ms", &audit->lease_ms, "10 to 86400000",
                "an audit that has no result by then goes to another validator"),
          field("audit.exact", &audit->exact, "",
                "outputs must have the miner's bits; for training.deterministic on boxes and "
                "validators with one kind of device"),
          field("audit.relative_error", &audit->relative_error, "above 0 and at most 1",
                "largest relative error of an activation or boundary gradient"),
          field("audit.cosine", &audit->cosine, "0 to 1",
                "least cosine of an activation or boundary gradient"),
          field("audit.norm_deviation", &audit->norm_deviation, "above 0 and at most 1",
                "the ratio of their norms is within 1 plus or minus this"),
          field("audit.rounding_flips", &audit->rounding_flips, "0 to 1",
                "share of int8 and int4 codes that honest noise may round the other way; widens "
                "the three limits above"),
          field("audit.delta_cosine", &audit->delta_cosine, "0 to 1",
                "least cosine of the change of the weights over a segment"),
          field("audit.delta_norm_deviation", &audit->delta_norm_deviation,
                "above 0 and at most 1", "the ratio of the changes' norms is within 1 plus or minus this"),
          field("audit.loss_tolerance", &audit->loss_tolerance, "above 0 and at most 1",
                "largest relative difference of the tail's loss"),
          field("audit.retention_epochs", &audit->retention_epochs, "1 to 1000",
                "payloads and states of so many epochs stay in the blob store"),
          field("audit.retention_bytes", ByteCount{&audit->retention_bytes}, "1MiB to 1PiB",
                "and no more than this of them; the oldest go first"),
      });
}

void add_timeouts(core::TimeoutSpec* timeouts, FieldTable* table) {
  table->insert(
      table->end(),
      {
          field("timeouts.lease_ms", &timeouts->lease_ms, "10 to 86400000",
                "a microbatch that is not complete by then is issued again"),
          field("timeouts.miner_lost_ms", &timeouts->miner_lost_ms, "10 to 86400000",
                "silence after which a miner counts as lost; at least twice timeouts.sync_ms"),
          field("timeouts.peer_ms", &timeouts->peer_ms, "10 to 86400000",
                "for one frame to a peer"),
          field("timeouts.merge_phase_ms", &timeouts->merge_phase_ms, "10 to 86400000",
                "for each phase of a merge"),
          field("timeouts.upload_grace_ms", &timeouts->upload_grace_ms, "0 to 86400000",
                "for the other uploads of a merge when merge.quorum of them are there"),
          field("timeouts.sync_ms", &timeouts->sync_ms, "1 to 86400000",
                "how often a miner reports to the orchestrator"),
      });
}

Status validate_data(const RunConfig& config) {
  const DataConfig& data = config.data;
  if (data.validation_share < 0 || data.validation_share > kMaxValidationShare) {
    return invalid_argument("data.validation_share: {} is not allowed; it must be 0 to {}",
                            data.validation_share, kMaxValidationShare);
  }
  if (data.jsonl_field.empty()) {
    return invalid_argument(
        "data.jsonl_field: empty; name the field of a line that holds the text");
  }
  const bool bytes = !data.text.empty() && data.sentencepiece_model.empty();
  if (bytes && config.spec.model.vocab < kByteVocab) {
    return invalid_argument(
        "model.vocab: {} is too small for data.text read as bytes; it must be at least {}, or give "
        "data.sentencepiece_model",
        config.spec.model.vocab, kByteVocab);
  }
  return ok_status();
}

// A rank in the file silences an overriding compression; nobody would notice that a sweep compares
// equal runs.
Status check_compression_counts(const Loader& loader, const core::BoundarySpec& boundary) {
  const bool silenced = boundary.rank != 0 && boundary.kind != BoundaryKind::kNone &&
                        loader.is_overridden("boundary.compression") &&
                        !loader.is_overridden("boundary.rank");
  if (!silenced) return ok_status();
  return invalid_argument(
      "boundary.compression: changes nothing, because boundary.rank is set to {} and goes first; "
      "add --set "
      "boundary.rank=0",
      boundary.rank);
}

}  // namespace

FieldTable run_table(RunConfig* config) {
  core::RunSpec* spec = &config->spec;
  FieldTable table = {field("run.name", &spec->name, "1 to 64 letters, digits, '.', '_' or '-'",
                            "of folders and metrics; begins with a letter or digit")};
  add_model(&spec->model, &table);
  add_pipeline(&spec->pipeline, &table);
  add_training(&spec->training, &table);
  add_boundary(&spec->boundary, &table);
  add_merge(&spec->merge, &table);
  add_timeouts(&spec->timeouts, &table);
  add_audit(&spec->audit, &table);
  DataConfig* data = &config->data;
  table.insert(
      table.end(),
      {
          field("checkpoint.every_microbatches", &spec->checkpoint.every_microbatches,
                "0 to 1000000000000", "0: only at the end of the run and when it is stopped"),
          field("checkpoint.keep", &spec->checkpoint.keep, "1 to 1000",
                "newest checkpoints that stay on disk"),
          field("data.path", &data->path, "",
                "dataset folder; empty: a folder in the program's own directory"),
          field("data.text", &data->text, "",
                "text files, folders, .gz or .jsonl files that the dataset is built from"),
          field("data.sentencepiece_model", &data->sentencepiece_model, "",
                "tokenizer model for building; empty: bytes are the tokens"),
          field("data.validation_share", &data->validation_share, "0 to 0.5",
                "of the tokens, kept out of training"),
          field("data.jsonl_field", &data->jsonl_field, "not empty",
                "of each line of a .jsonl file: the text"),
      });
  return table;
}

Status check_run(const Loader& loader, RunConfig* config) {
  TESSERA_RETURN_IF_ERROR(loader.locate(check_compression_counts(loader, config->spec.boundary)));
  TESSERA_RETURN_IF_ERROR(loader.locate(core::validate(&config->spec)));
  return loader.locate(validate_data(*config));
}

StatusOr<RunConfig> load_run_config(const std::string& path,
                                    const std::vector<std::string>& overrides) {
  RunConfig config;
  Loader loader(run_table(&config), path);
  TESSERA_RETURN_IF_ERROR(loader.load(overrides));
  TESSERA_RETURN_IF_ERROR(check_run(loader, &config));
  return config;
}

std::string to_yaml(const RunConfig& config) {
  RunConfig copy = config;
  return write_yaml(run_table(&copy));
}

std::string run_config_reference_markdown() {
  RunConfig defaults;
  return write_reference(run_table(&defaults));
}

}  // namespace tessera::config
