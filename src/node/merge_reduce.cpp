#include "tessera/node/merge_reduce.h"

#include <algorithm>
#include <cmath>
#include <future>

#include "tessera/base/crypto.h"
#include "tessera/kernels/merge.h"
#include "tessera/kernels/merge_wire.h"
#include "tessera/node/objects.h"

namespace tessera::node {
namespace {

static_assert(core::kMaxTrimmedUploads == kernels::kMaximumTrimmedInputs);

// Of the energy of a mean: below it, what is left without one upload is rounding.
constexpr double kNothingLeft = 1e-6;
// A block below this norm has no direction: its reciprocal would leave fp32's range.
constexpr double kSmallestEnergy = 1e-60;

StatusOr<core::ObjectManifest> get_upload(ports::BlobLink& blobs, const ReduceInputs& inputs, const Digest& object) {
  TESSERA_ASSIGN_OR_RETURN(core::ObjectManifest manifest, get_manifest(blobs, object));
  const Codec format = inputs.merge.upload_format;
  const uint64_t total = kernels::merge_run_bytes(format, inputs.stage_values, inputs.merge.block_values);
  const uint64_t chunk = kernels::merge_block_bytes(format, inputs.merge.block_values);
  if (manifest.total_bytes != total || manifest.chunk_bytes != chunk) {
    return data_loss("upload {} has {} bytes in chunks of {}; this stage has {} in chunks of {}", object.brief(),
                     manifest.total_bytes, manifest.chunk_bytes, total, chunk);
  }
  return manifest;
}

uint64_t blocks_per_piece(const ReduceInputs& inputs) {
  const uint64_t block_bytes = inputs.merge.block_values * sizeof(float) * (inputs.uploads.size() + 2);
  return std::max<uint64_t>(1, kReduceBytes / block_bytes);
}

Status read_range(ports::BlobLink& blobs, const ReduceInputs& inputs, const Digest& object) {
  TESSERA_ASSIGN_OR_RETURN(const core::ObjectManifest manifest, get_upload(blobs, inputs, object));
  for (uint64_t at = 0; at < inputs.block_count; at += blocks_per_piece(inputs)) {
    const uint64_t blocks = std::min(blocks_per_piece(inputs), inputs.block_count - at);
    TESSERA_RETURN_IF_ERROR(get_chunks(blobs, manifest, inputs.first_block + at, blocks).status());
  }
  return ok_status();
}

// Some blocks of every upload, as they came.
using Piece = StatusOr<std::vector<std::string>>;

Piece fetch_piece(ports::BlobLink& blobs, const std::vector<core::ObjectManifest>& manifests, uint64_t first,
                  uint64_t blocks) {
  std::vector<std::string> pieces;
  for (const core::ObjectManifest& manifest : manifests) {
    TESSERA_ASSIGN_OR_RETURN(std::string bytes, get_chunks(blobs, manifest, first, blocks));
    pieces.push_back(std::move(bytes));
  }
  return pieces;
}

class Reducer {
 public:
  Reducer(ports::BlobLink& blobs, const ReduceInputs& inputs)
      : inputs_(inputs),
        writer_(blobs, static_cast<uint32_t>(
                           kernels::merge_block_bytes(inputs.merge.result_format, inputs.merge.block_values))),
        values_(inputs.uploads.size()),
        measures_(inputs.uploads.size()) {}

  Status add(const std::vector<std::string>& pieces, uint64_t first_block, uint64_t blocks);
  StatusOr<Reduction> finish() {
    TESSERA_ASSIGN_OR_RETURN(const Digest object, writer_.finish());
    return Reduction{result_.finish(), object, measures_};
  }

 private:
  void measure();
  void take_mean();
  std::vector<double> dots(const std::vector<float>& a, const std::vector<float>& b) const;
  Status store(uint64_t first_block);

  const ReduceInputs& inputs_;
  ObjectWriter writer_;
  Hasher result_;
  uint64_t number_ = 0;  // of the next block within the shard
  std::vector<std::vector<float>> values_;
  std::vector<float> mean_;
  std::vector<core::UploadMeasure> measures_;
};

Status Reducer::add(const std::vector<std::string>& pieces, uint64_t first_block, uint64_t blocks) {
  const uint64_t block = inputs_.merge.block_values;
  const uint64_t values = std::min((first_block + blocks) * block, inputs_.stage_values) - first_block * block;
  mean_.resize(values);
  for (size_t k = 0; k < pieces.size(); ++k) {
    values_[k].resize(values);
    kernels::merge_decode_cpu({.run = {inputs_.merge.upload_format, values, block},
                               .payload = reinterpret_cast<const uint8_t*>(pieces[k].data()),
                               .assign = true,
                               .sum = values_[k].data()});
  }
  measure();
  take_mean();
  return store(first_block);
}

std::vector<double> Reducer::dots(const std::vector<float>& a, const std::vector<float>& b) const {
  const uint64_t block = inputs_.merge.block_values;
  std::vector<double> dots((a.size() + block - 1) / block);
  kernels::merge_dots_cpu({a.size(), block, a.data(), b.data(), dots.data()});
  return dots;
}

// Block by block: the norm of each upload, and its cosine to the mean of the others' directions (core/merge_messages.h).
void Reducer::measure() {
  const size_t uploads = values_.size();
  std::vector<std::vector<double>> energies(uploads);
  mean_.assign(mean_.size(), 0.0f);  // of directions, here
  for (size_t k = 0; k < uploads; ++k) {
    energies[k] = dots(values_[k], values_[k]);
    std::vector<float> factors(energies[k].size());
    for (size_t b = 0; b < factors.size(); ++b) {
      const double energy = energies[k][b];
      if (energy > kSmallestEnergy && std::isfinite(energy)) factors[b] = static_cast<float>(inputs_.uploads[k].weight / std::sqrt(energy));
    }
    // An upload that is not finite has no direction, and must not touch the others'.
    if (std::all_of(energies[k].begin(), energies[k].end(), [](double energy) { return std::isfinite(energy); })) {
      kernels::merge_scaled_sum_cpu(
          {mean_.size(), inputs_.merge.block_values, values_[k].data(), factors.data(), mean_.data()});
    }
  }
  const std::vector<double> total = dots(mean_, mean_);
  for (size_t k = 0; k < uploads; ++k) {
    const std::vector<double> along = dots(values_[k], mean_);
    const double weight = inputs_.uploads[k].weight;
    for (size_t b = 0; b < total.size(); ++b) {
      const double energy = energies[k][b];
      core::UploadMeasure measure{energy, 0};
      if (!std::isfinite(energy)) {
        measure.energy = -1;
      } else if (energy > kSmallestEnergy) {
        const double own = along[b] / std::sqrt(energy);
        const double others = total[b] - 2 * weight * own + weight * weight;
        if (others > kNothingLeft * total[b]) measure.alignment = energy * (own - weight) / std::sqrt(others);
      }
      measures_[k].add(measure);
    }
  }
}

void Reducer::take_mean() {
  std::vector<const float*> pointers;
  std::vector<float> weights;
  for (size_t k = 0; k < values_.size(); ++k) {
    pointers.push_back(values_[k].data());
    weights.push_back(inputs_.uploads[k].weight);
  }
  if (inputs_.merge.trim_share == 0) {
    kernels::weighted_sum_cpu(pointers.data(), weights.data(), pointers.size(), mean_.size(), mean_.data());
    return;
  }
  const auto count = static_cast<uint32_t>(pointers.size());
  const auto trim = static_cast<uint32_t>(inputs_.merge.trim_share * count);
  kernels::trimmed_mean_cpu({pointers.data(), count, trim, mean_.size(), mean_.data()});
}

Status Reducer::store(uint64_t first_block) {
  const kernels::MergeRun run{inputs_.merge.result_format, mean_.size(), inputs_.merge.block_values};
  std::string bytes(kernels::merge_run_bytes(run.format, run.values, run.block_values), '\0');
  kernels::merge_encode_cpu({.run = run,
                             .input = mean_.data(),
                             .stochastic = true,
                             .seed = inputs_.rounding_key,
                             .first_block = first_block,
                             .payload = reinterpret_cast<uint8_t*>(bytes.data())});
  result_.update(bytes);
  const uint64_t whole = kernels::merge_block_bytes(run.format, run.block_values);
  for (uint64_t at = 0; at < bytes.size(); at += whole) {
    std::string block = bytes.substr(at, whole);
    apply_keystream(inputs_.token, number_++, &block);
    TESSERA_RETURN_IF_ERROR(writer_.add(std::move(block)));
  }
  return ok_status();
}

}  // namespace

std::vector<Digest> unreadable_uploads(ports::BlobLink& blobs, const ReduceInputs& inputs) {
  std::vector<Digest> unreadable;
  for (const core::UploadRef& upload : inputs.uploads) {
    const Status status = read_range(blobs, inputs, upload.object);
    const bool its_own_fault = absl::IsNotFound(status) || absl::IsDataLoss(status) || absl::IsInvalidArgument(status) ||
                               absl::IsOutOfRange(status);
    if (its_own_fault) unreadable.push_back(upload.object);
  }
  return unreadable;
}

StatusOr<Reduction> reduce_shard(ports::BlobLink& blobs, const ReduceInputs& inputs) {
  if (inputs.uploads.empty()) return invalid_argument("a reduction of no uploads");
  if (inputs.merge.trim_share > 0 && inputs.uploads.size() > core::kMaxTrimmedUploads) {
    return invalid_argument("a trimmed mean of {} uploads; the limit is {}", inputs.uploads.size(), core::kMaxTrimmedUploads);
  }
  const uint64_t total_blocks = (inputs.stage_values + inputs.merge.block_values - 1) / inputs.merge.block_values;
  if (inputs.first_block > total_blocks || inputs.block_count > total_blocks - inputs.first_block) {
    return error(absl::StatusCode::kOutOfRange, "blocks {} to {} of a stage with {}", inputs.first_block,
                 inputs.first_block + inputs.block_count, total_blocks);
  }
  std::vector<core::ObjectManifest> manifests;
  for (const core::UploadRef& upload : inputs.uploads) {
    TESSERA_ASSIGN_OR_RETURN(core::ObjectManifest manifest, get_upload(blobs, inputs, upload.object));
    manifests.push_back(std::move(manifest));
  }
  const uint64_t step = blocks_per_piece(inputs);
  const auto fetch = [&](uint64_t at) {
    return fetch_piece(blobs, manifests, inputs.first_block + at, std::min(step, inputs.block_count - at));
  };
  Reducer reducer(blobs, inputs);
  std::future<Piece> next;
  for (uint64_t at = 0; at < inputs.block_count; at += step) {
    Piece piece = next.valid() ? next.get() : fetch(at);
    if (inputs.overlap && at + step < inputs.block_count) {
      next = std::async(std::launch::async, [&fetch, from = at + step] { return fetch(from); });
    }
    if (!piece.ok()) return piece.status();
    TESSERA_RETURN_IF_ERROR(reducer.add(*piece, inputs.first_block + at, std::min(step, inputs.block_count - at)));
  }
  return reducer.finish();
}

}  // namespace tessera::node
