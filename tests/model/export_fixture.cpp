// hf_export_fixture FOLDER: a small random model without boundary modules as FOLDER/checkpoint and,
// exported, as FOLDER/hf; and a dataset of several shards as FOLDER/dataset. For export_logits.py.
#include <cstdio>
#include <string>

#include "tessera/base/files.h"
#include "tessera/base/prng.h"
#include "tessera/data/dataset.h"
#include "tessera/model/stage_layout.h"
#include "tessera/store/checkpoint.h"
#include "tessera/store/hf_export.h"

namespace tessera {
namespace {

// Grouped-query attention, a normalised embedding, and two stages whose boundary rounds nothing.
// The large epsilon makes a wrong place of it visible.
core::RunSpec make_spec() {
  core::RunSpec spec;
  spec.name = "export";
  spec.model = {.layers = 3,
                .width = 64,
                .heads = 4,
                .kv_heads = 2,
                .ffn_width = 96,
                .vocab = 256,
                .context = 32,
                .norm_epsilon = 1e-3,
                .init_std = 0.15};
  spec.pipeline.stages = 2;
  spec.training.microbatch_size = 2;
  spec.boundary = {.kind = core::BoundaryKind::kNone, .codec = Codec::kFp32, .compression = 1};
  return spec;
}

Status make(const std::string& folder) {
  ports::Checkpoint checkpoint;
  checkpoint.run_id = std::string(16, 'e');
  checkpoint.spec = make_spec();
  TESSERA_RETURN_IF_ERROR(core::validate(&checkpoint.spec));
  checkpoint.data.tokenizer = "bytes";
  Prng prng(7);
  for (StageIndex stage = 0; stage < checkpoint.spec.pipeline.stages; ++stage) {
    ports::CheckpointStage values;
    values.weights = model::initial_values(checkpoint.spec, stage, 1);
    // Norm weights of exactly 1 would hide a norm that is left out.
    for (float& value : values.weights) value += static_cast<float>(0.2 * (prng.uniform() - 0.5));
    values.base = values.weights;
    values.momentum.assign(values.weights.size(), 0);
    checkpoint.stages.push_back(std::move(values));
  }
  TESSERA_RETURN_IF_ERROR(
      store::CheckpointFolder(folder + "/checkpoint").write(checkpoint).status());
  TESSERA_ASSIGN_OR_RETURN(const ports::Checkpoint read,
                           store::read_checkpoint_weights(folder + "/checkpoint"));
  return store::export_hugging_face(read, folder + "/hf", /*force=*/false);
}

// Shards that are no whole number of windows: what is left of each must be dropped.
Status make_dataset(const std::string& folder) {
  std::string text;
  Prng prng(8);
  while (text.size() < 1000) text += static_cast<char>('a' + prng.below(26));
  TESSERA_RETURN_IF_ERROR(write_file_atomic(folder + "/dataset.txt", text));
  data::BuildOptions options;
  options.inputs = {folder + "/dataset.txt"};
  options.out = folder + "/dataset";
  options.validation_share = 0.2;
  options.shard_tokens = 150;
  return data::build_dataset(options).status();
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: hf_export_fixture FOLDER\n");
    return 2;
  }
  tessera::Status status = tessera::make(argv[1]);
  if (status.ok()) status = tessera::make_dataset(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", tessera::message_of(status).c_str());
  return status.ok() ? 0 : 1;
}
