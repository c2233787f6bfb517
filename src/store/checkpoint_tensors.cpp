#include "store/checkpoint_tensors.h"

#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/base/crypto.h"
#include "tessera/base/files.h"
#include "tessera/core/stage_layout.h"
#include "tessera/store/safetensors.h"

namespace tessera::store {
namespace {

using core::TensorLayout;

constexpr char kMend[] = "restore it from a copy, or use another checkpoint";
constexpr uint64_t kMaxHeaderBytes = 64u
                                     << 20;  // of one tensor file; a real one has some kilobytes
constexpr size_t kReadBytes = size_t{1} << 20;
constexpr char kOptimizerSteps[] = "optimizer_steps";
constexpr char kGradientMicrobatches[] = "gradient_microbatches";

// One flat vector of a stage under a prefix of its tensors' names. `Values`: const to write.
template <class Values>
struct Named {
  const char* prefix;
  Values* values;
};
using Source = Named<const std::vector<float>>;
using Target = Named<std::vector<float>>;

uint64_t value_count(const std::vector<TensorLayout>& layout) {
  return layout.empty() ? 0 : layout.back().offset + layout.back().count;
}

// Of the bytes on disk, so that what is recorded is what was stored.
StatusOr<StoredFile> describe(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  std::ifstream file(path, std::ios::binary);
  std::vector<char> buffer(kReadBytes);
  StoredFile stored;
  stored.name = name;
  Hasher hasher;
  while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) ||
         file.gcount() > 0) {
    hasher.update(buffer.data(), static_cast<size_t>(file.gcount()));
    stored.bytes += static_cast<uint64_t>(file.gcount());
  }
  if (!file.eof()) return internal_error("{}: can't read what was just written", path);
  stored.digest = hasher.finish();
  return stored;
}

StatusOr<StoredFile> write_values(const std::string& folder, const std::string& name,
                                  const std::vector<TensorLayout>& layout,
                                  const std::vector<Source>& sources,
                                  std::map<std::string, std::string> metadata) {
  std::vector<SafeTensor> tensors;
  tensors.reserve(layout.size() * sources.size());
  for (const Source& source : sources) {
    for (const TensorLayout& tensor : layout) {
      const auto* begin = reinterpret_cast<const char*>(source.values->data() + tensor.offset);
      tensors.push_back({source.prefix + tensor.name, "F32", tensor.shape,
                         std::string_view(begin, tensor.count * sizeof(float))});
    }
  }
  metadata["format"] = "pt";  // what readers of other projects expect
  TESSERA_RETURN_IF_ERROR(write_safetensors(folder + "/" + name, tensors, metadata));
  return describe(folder, name);
}

std::vector<Source> sources_of(const core::LocalState& state) {
  std::vector<Source> sources = {{"master.", &state.masters},
                                 {"first_moment.", &state.first_moment},
                                 {"second_moment.", &state.second_moment}};
  if (!state.gradient.empty()) sources.push_back({"gradient.", &state.gradient});
  if (!state.residual.empty()) sources.push_back({"residual.", &state.residual});
  return sources;
}

std::map<std::string, std::string> metadata_of(const ports::Checkpoint& checkpoint,
                                               StageIndex stage) {
  return {{"run_id", to_hex(checkpoint.run_id)},
          {"done", std::to_string(checkpoint.done)},
          {"stage", std::to_string(stage)},
          {"epoch", std::to_string(checkpoint.stages[stage].epoch)}};
}

// The file's bytes, checked against what run.json says of them. `data_bytes`: at most that many of
// tensors.
StatusOr<std::unique_ptr<SafetensorsFile>> read_stored(const std::string& folder,
                                                       const StoredFile& stored,
                                                       uint64_t data_bytes) {
  const std::string path = folder + "/" + stored.name;
  std::error_code code;
  const auto kind = std::filesystem::status(path, code).type();
  if (kind == std::filesystem::file_type::not_found) {
    return not_found("{}: missing, but {} lists it; {}", path, kRunFile, kMend);
  }
  // Opening a pipe would wait for its writer.
  if (kind != std::filesystem::file_type::regular) {
    return data_loss("{}: not a regular file that can be read; {}", path, kMend);
  }
  const uintmax_t bytes = std::filesystem::file_size(path, code);
  if (code) return internal_error("{}: can't read its size: {}", path, code.message());
  if (bytes != stored.bytes) {
    return data_loss("{}: {} bytes, but {} says {}; truncated or replaced: {}", path, bytes,
                     kRunFile, stored.bytes, kMend);
  }
  if (bytes > data_bytes + kMaxHeaderBytes) {
    return data_loss("{}: {} bytes, but tensors of this model have {}; {}", path, bytes, data_bytes,
                     kMend);
  }
  TESSERA_ASSIGN_OR_RETURN(std::string content, read_file(path, stored.bytes));
  if (digest_of(content) != stored.digest) {
    return data_loss("{}: its content does not have the BLAKE2b digest that {} gives: damaged; {}",
                     path, kRunFile, kMend);
  }
  StatusOr<std::unique_ptr<SafetensorsFile>> file = parse_safetensors(std::move(content), path);
  if (file.ok()) return file;
  return data_loss("{}; {}", message_of(file.status()), kMend);
}

using TensorsByName = std::map<std::string_view, const SafeTensor*>;

TensorsByName by_name(const SafetensorsFile& file) {
  TensorsByName tensors;
  for (const SafeTensor& tensor : file.tensors) tensors[tensor.name] = &tensor;
  return tensors;
}

Status take_values(const TensorsByName& tensors, const std::vector<TensorLayout>& layout,
                   const Target& target, const std::string& path) {
  for (const TensorLayout& wanted : layout) {
    const std::string name = target.prefix + wanted.name;
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      return data_loss("{}: has no tensor '{}', which this model needs; {}", path, name, kMend);
    }
    if (found->second->dtype != "F32" || found->second->shape != wanted.shape) {
      return data_loss("{}: tensor '{}' has another shape or type than this model's; {}", path,
                       name, kMend);
    }
  }
  target.values->resize(value_count(layout));  // no more than the file has, as the shapes are equal
  for (const TensorLayout& wanted : layout) {
    const std::string_view data = tensors.at(target.prefix + wanted.name)->data;
    std::memcpy(target.values->data() + wanted.offset, data.data(), data.size());
  }
  return ok_status();
}

// The targets' tensors, and no others.
Status take_all(const SafetensorsFile& file, const std::vector<TensorLayout>& layout,
                const std::vector<Target>& targets, const std::string& path) {
  const TensorsByName tensors = by_name(file);
  if (tensors.size() != layout.size() * targets.size()) {
    return data_loss("{}: {} tensors, but {} of this model belong there; {}", path, tensors.size(),
                     layout.size() * targets.size(), kMend);
  }
  for (const Target& target : targets) {
    TESSERA_RETURN_IF_ERROR(take_values(tensors, layout, target, path));
  }
  return ok_status();
}

Status read_values(const std::string& folder, const StoredFile& stored,
                   const std::vector<TensorLayout>& layout, const std::vector<Target>& targets) {
  const uint64_t data_bytes = value_count(layout) * sizeof(float) * targets.size();
  TESSERA_ASSIGN_OR_RETURN(const auto file, read_stored(folder, stored, data_bytes));
  return take_all(*file, layout, targets, folder + "/" + stored.name);
}

template <class Number>
Status take_counter(const SafetensorsFile& file, const char* name, const std::string& path,
                    Number* number) {
  const auto found = file.metadata.find(name);
  if (found != file.metadata.end()) {
    const char* const end = found->second.data() + found->second.size();
    const auto result = std::from_chars(found->second.data(), end, *number);
    if (result.ec == std::errc() && result.ptr == end) return ok_status();
  }
  return data_loss("{}: its metadata have no whole number '{}'; {}", path, name, kMend);
}

Status read_state(const std::string& folder, const StoredFile& stored,
                  const std::vector<TensorLayout>& layout, core::LocalState* state) {
  const std::string path = folder + "/" + stored.name;
  const uint64_t data_bytes = 5 * value_count(layout) * sizeof(float);
  TESSERA_ASSIGN_OR_RETURN(const auto file, read_stored(folder, stored, data_bytes));
  TESSERA_RETURN_IF_ERROR(take_counter(*file, kOptimizerSteps, path, &state->optimizer_steps));
  TESSERA_RETURN_IF_ERROR(
      take_counter(*file, kGradientMicrobatches, path, &state->gradient_microbatches));
  std::vector<Target> targets = {{"master.", &state->masters},
                                 {"first_moment.", &state->first_moment},
                                 {"second_moment.", &state->second_moment}};
  if (state->gradient_microbatches > 0) targets.push_back({"gradient.", &state->gradient});
  if (file->tensors.size() == layout.size() * (targets.size() + 1)) targets.push_back({"residual.", &state->residual});
  return take_all(*file, layout, targets, path);
}

std::vector<std::vector<TensorLayout>> layouts_of(const core::RunSpec& spec) {
  std::vector<std::vector<TensorLayout>> layouts;
  for (StageIndex stage = 0; stage < spec.pipeline.stages; ++stage) {
    layouts.push_back(core::stage_layout(spec, stage));
  }
  return layouts;
}

Status check_size(const std::string& owner, const char* what, size_t have, uint64_t want) {
  if (have == want) return ok_status();
  return invalid_argument("{}: {} of {} values; this model has {} there", owner, what, have, want);
}

}  // namespace

Status check_values(const ports::Checkpoint& checkpoint) {
  std::vector<uint64_t> counts;
  for (StageIndex stage = 0; stage < checkpoint.stages.size(); ++stage) {
    counts.push_back(core::stage_value_count(checkpoint.spec, stage));
    const ports::CheckpointStage& values = checkpoint.stages[stage];
    const std::string owner = fmt::format("stage {}", stage);
    TESSERA_RETURN_IF_ERROR(check_size(owner, "weights", values.weights.size(), counts[stage]));
    TESSERA_RETURN_IF_ERROR(check_size(owner, "base", values.base.size(), counts[stage]));
    TESSERA_RETURN_IF_ERROR(check_size(owner, "momentum", values.momentum.size(), counts[stage]));
  }
  for (const ports::CheckpointMiner& miner : checkpoint.miners) {
    const core::LocalState& state = miner.state;
    const std::string owner = fmt::format("miner {}", miner.node.brief());
    const uint64_t count = counts[miner.stage];
    TESSERA_RETURN_IF_ERROR(check_size(owner, "masters", state.masters.size(), count));
    TESSERA_RETURN_IF_ERROR(check_size(owner, "first moment", state.first_moment.size(), count));
    TESSERA_RETURN_IF_ERROR(check_size(owner, "second moment", state.second_moment.size(), count));
    TESSERA_RETURN_IF_ERROR(check_size(owner, "gradient", state.gradient.size(),
                                       state.gradient_microbatches > 0 ? count : 0));
    if (!state.residual.empty()) TESSERA_RETURN_IF_ERROR(check_size(owner, "residual", state.residual.size(), count));
  }
  return ok_status();
}

StatusOr<CheckpointManifest> write_tensor_files(const std::string& folder,
                                                const ports::Checkpoint& checkpoint) {
  CheckpointManifest manifest;
  const std::vector<std::vector<TensorLayout>> layouts = layouts_of(checkpoint.spec);
  for (StageIndex stage = 0; stage < checkpoint.stages.size(); ++stage) {
    const ports::CheckpointStage& values = checkpoint.stages[stage];
    TESSERA_ASSIGN_OR_RETURN(manifest.weights.emplace_back(),
                             write_values(folder, weights_file(stage), layouts[stage],
                                          {{"", &values.weights}}, metadata_of(checkpoint, stage)));
    TESSERA_ASSIGN_OR_RETURN(
        manifest.outer.emplace_back(),
        write_values(folder, outer_file(stage), layouts[stage],
                     {{"base.", &values.base}, {"momentum.", &values.momentum}},
                     metadata_of(checkpoint, stage)));
  }
  const std::vector<std::string> names = state_files(checkpoint.miners);
  for (size_t i = 0; i < names.size(); ++i) {
    const ports::CheckpointMiner& miner = checkpoint.miners[i];
    std::map<std::string, std::string> metadata = metadata_of(checkpoint, miner.stage);
    metadata["node"] = miner.node.hex();
    metadata[kOptimizerSteps] = std::to_string(miner.state.optimizer_steps);
    metadata[kGradientMicrobatches] = std::to_string(miner.state.gradient_microbatches);
    TESSERA_ASSIGN_OR_RETURN(manifest.states.emplace_back(),
                             write_values(folder, names[i], layouts[miner.stage],
                                          sources_of(miner.state), std::move(metadata)));
  }
  return manifest;
}

Status read_tensor_files(const std::string& folder, bool weights_only,
                         CheckpointManifest* manifest) {
  ports::Checkpoint& checkpoint = manifest->checkpoint;
  const std::vector<std::vector<TensorLayout>> layouts = layouts_of(checkpoint.spec);
  for (StageIndex stage = 0; stage < checkpoint.stages.size(); ++stage) {
    ports::CheckpointStage& values = checkpoint.stages[stage];
    TESSERA_RETURN_IF_ERROR(
        read_values(folder, manifest->weights[stage], layouts[stage], {{"", &values.weights}}));
    if (weights_only) continue;
    TESSERA_RETURN_IF_ERROR(
        read_values(folder, manifest->outer[stage], layouts[stage],
                    {{"base.", &values.base}, {"momentum.", &values.momentum}}));
  }
  if (weights_only) {
    checkpoint.miners.clear();
    return ok_status();
  }
  for (size_t i = 0; i < checkpoint.miners.size(); ++i) {
    ports::CheckpointMiner& miner = checkpoint.miners[i];
    TESSERA_RETURN_IF_ERROR(
        read_state(folder, manifest->states[i], layouts[miner.stage], &miner.state));
  }
  return ok_status();
}

}  // namespace tessera::store
