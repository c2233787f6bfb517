#include "apps/bench/merge_reducers.h"

#include <algorithm>

#include "apps/bench/merge_store.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::apps {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kGroupBytes = uint64_t{512} << 10;   // of uploads, as node/merge_reduce.cpp fetches them
constexpr uint64_t kUploadsBytes = uint64_t{64} << 20;  // of all of them, as fp32: more than the CPU's caches hold

}  // namespace

// Some blocks of every upload as they come.
struct ReducerLoad::Uploads {
  Uploads(const core::MergeSpec& merge, uint32_t count) : weights(count, 1.0f / static_cast<float>(count)) {
    blocks = std::max<uint64_t>(1, kUploadsBytes / (sizeof(float) * merge.block_values * count));
    const kernels::MergeRun run{merge.upload_format, blocks * merge.block_values, merge.block_values};
    block_bytes = kernels::merge_block_bytes(run.format, run.block_values);
    for (uint32_t k = 0; k < count; ++k) {
      const std::vector<float> values = snapshot_of(run.values, k);
      payloads.emplace_back(blocks * block_bytes);
      kernels::merge_encode_cpu({.run = run, .input = values.data(), .payload = payloads.back().data()});
    }
  }
  uint64_t group_blocks() const {
    return std::clamp<uint64_t>(kGroupBytes / (block_bytes * weights.size()), 1, blocks);
  }
  uint64_t blocks = 0, block_bytes = 0;
  std::vector<float> weights;
  std::vector<std::vector<uint8_t>> payloads;
};

ReducerLoad::ReducerLoad(kernels::MergeReducer* device, const core::MergeSpec& merge, uint32_t uploads, size_t threads)
    : device_(device), merge_(merge), uploads_(std::make_unique<Uploads>(merge, uploads)), begin_(Clock::now()) {
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ReducerLoad::~ReducerLoad() { stop_ = true; }

// Blocks `first` and the `count` - 1 after it.
Status ReducerLoad::reduce(kernels::MergeReducer& reducer, uint64_t first, uint64_t count) const {
  const core::MergeSpec& merge = merge_;
  const Uploads& uploads = *uploads_;
  const size_t inputs = uploads.weights.size();
  const uint64_t result_bytes = kernels::merge_block_bytes(merge.result_format, merge.block_values);
  std::vector<uint64_t> numbers(count);
  std::vector<const uint8_t*> payloads;
  std::vector<uint8_t> bytes(count * result_bytes);
  std::vector<uint8_t*> results(count);
  std::vector<double> energies(count * inputs), overlaps(count * inputs), totals(count);
  for (uint64_t b = 0; b < count; ++b) {
    numbers[b] = first + b;
    results[b] = bytes.data() + b * result_bytes;
    for (const auto& payload : uploads.payloads) payloads.push_back(payload.data() + (first + b) * uploads.block_bytes);
  }
  return reducer.reduce({.upload_format = merge.upload_format,
                         .result_format = merge.result_format,
                         .block_values = merge.block_values,
                         .values = merge.block_values,
                         .input_count = static_cast<uint32_t>(inputs),
                         .weights = uploads.weights.data(),
                         .trimmed = merge.trim_share > 0,
                         .trim = static_cast<uint32_t>(merge.trim_share * static_cast<double>(inputs)),
                         .seed = 1,
                         .block_count = count,
                         .numbers = numbers.data(),
                         .payloads = payloads.data(),
                         .results = results.data(),
                         .energies = energies.data(),
                         .overlaps = overlaps.data(),
                         .totals = totals.data()});
}

void ReducerLoad::work() {
  kernels::CpuMergeReducer cpu;
  kernels::MergeReducer& reducer = device_ != nullptr ? *device_ : cpu;
  const uint64_t group = uploads_->group_blocks();
  while (!stop_) {
    const uint64_t first = begun_++ % (uploads_->blocks / group) * group;
    const Status status = reduce(reducer, first, group);
    if (!status.ok()) {
      std::lock_guard lock(mutex_);
      failure_ = status;
      return;
    }
    ++done_;
  }
}

void ReducerLoad::restart() {
  done_ = 0;
  begin_ = Clock::now();
}

StatusOr<double> ReducerLoad::finish() {
  stop_ = true;
  threads_.clear();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  if (!failure_.ok()) return failure_;
  const double values =
      static_cast<double>(done_) * static_cast<double>(uploads_->group_blocks() * merge_.block_values * uploads_->weights.size());
  return values * sizeof(float) / seconds / 1e9;
}

StatusOr<double> reducer_rate(kernels::MergeReducer* device, const core::MergeSpec& merge, uint32_t uploads, size_t threads) {
  ReducerLoad load(device, merge, uploads, threads);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  return load.finish();
}

}  // namespace tessera::apps
