#include "model/sharded_gradients.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "tessera/base/status.h"

namespace tessera::model {

ShardedGradients::ShardedGradients(const ShardLayout& layout, uint32_t zero_stage, std::shared_ptr<const BoxGroup> group,
                                   const at::Device& device)
    : layout_(layout), zero_stage_(zero_stage), group_(std::move(group)) {
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(device);
  // Zeros: padding is added up, and counted in the norm.
  accumulator_ = at::zeros({is_whole() ? layout_.padded_count() : layout_.shard_count()}, options);
  if (is_whole()) return;
  for (Bucket& bucket : buckets_) bucket.memory = at::zeros({layout_.largest_unit()}, options);
}

int64_t ShardedGradients::bucket_bytes() const {
  // A slice is summed up beside the accumulator while its bucket is under way.
  return is_whole() ? 0 : static_cast<int64_t>(2 * buckets_[0].memory.nbytes() / layout_.shards() * (layout_.shards() + 1));
}

at::Tensor ShardedGradients::slice(size_t unit) const {
  if (!is_whole()) return accumulator_.narrow(0, layout_.slice_offset(unit), layout_.slice_count(unit));
  return accumulator_.narrow(0, layout_.units()[unit].padded_offset + own_slice() * layout_.slice_count(unit),
                             layout_.slice_count(unit));
}

std::vector<kernels::OptimizerSegment> ShardedGradients::segments() const {
  std::vector<kernels::OptimizerSegment> segments;
  for (size_t unit = 0; unit < layout_.units().size(); ++unit) {
    const at::Tensor own = slice(unit);
    if (own.numel() > 0) segments.push_back({own.storage_offset(), own.numel(), false});
  }
  return segments;
}

void ShardedGradients::begin_microbatch(bool last) {
  if (is_whole() && reduced_ && microbatches_ > 0) spread();
  reduced_ = false;
  reducing_ = is_whole() && last;
}

// After a reduction: every worker keeps what it alone is to count, so that the accumulators add up to the sum once.
void ShardedGradients::spread() {
  if (zero_stage_ == 0) {
    if (group_->rank() > 0) accumulator_.zero_();
    return;
  }
  for (size_t unit = 0; unit < layout_.units().size(); ++unit) {
    const ShardUnit& place = layout_.units()[unit];
    const int64_t own = own_slice() * layout_.slice_count(unit), after = own + layout_.slice_count(unit);
    accumulator_.narrow(0, place.padded_offset, own).zero_();
    accumulator_.narrow(0, place.padded_offset + after, place.padded_count - after).zero_();
  }
}

void ShardedGradients::finish_microbatch() {
  for (Pending& pending : under_way_) finish(&pending);
  under_way_.clear();
  for (Bucket& bucket : buckets_) collect(&bucket);
  reduced_ = reducing_ || !is_whole();
  reducing_ = false;
  ++microbatches_;
}

void ShardedGradients::collect(Bucket* bucket) {
  finish(&bucket->scatter);
  if (bucket->sum.defined()) bucket->target.add_(bucket->sum);
  bucket->sum.reset();
  bucket->target.reset();
}

void ShardedGradients::begin(size_t unit) {
  if (is_whole()) return;
  const ShardUnit& place = layout_.units()[unit];
  bucket_ = &buckets_[next_bucket_++ % 2];
  collect(bucket_);
  bucket_->memory.narrow(0, place.count, place.padded_count - place.count).zero_();
  // Stage 3 computes with weights that lie at the beginning of a slot, stage 2 with those of the padded vector.
  first_ = zero_stage_ == 2 ? place.padded_offset : 0;
}

GradientTarget ShardedGradients::target(const at::Tensor& weight) {
  const at::Tensor& memory = is_whole() ? accumulator_ : bucket_->memory;
  const int64_t first = is_whole() ? 0 : first_;
  return {memory.narrow(0, weight.storage_offset() - first, weight.numel()).view(weight.sizes()),
          is_whole() && microbatches_ > 0};
}

Pending ShardedGradients::reduce_unit(size_t unit) const {
  const ShardUnit& place = layout_.units()[unit];
  if (place.count == 0) return nullptr;
  const at::Tensor whole = accumulator_.narrow(0, place.padded_offset, place.padded_count);
  return zero_stage_ == 0 ? group_->all_reduce(whole) : group_->reduce_scatter(whole, slice(unit));
}

void ShardedGradients::end(size_t unit) {
  const ShardUnit& place = layout_.units()[unit];
  if (place.count == 0) return;
  if (is_whole()) {
    if (reducing_) under_way_.push_back(reduce_unit(unit));
    return;
  }
  bucket_->target = slice(unit);
  if (microbatches_ > 0) bucket_->sum = at::empty_like(bucket_->target);
  bucket_->scatter = group_->reduce_scatter(bucket_->memory.narrow(0, 0, place.padded_count),
                                            microbatches_ > 0 ? bucket_->sum : bucket_->target);
}

void ShardedGradients::reduce() {
  if (reduced_ || microbatches_ == 0) return;
  for (size_t unit = layout_.units().size(); unit-- > 0;) under_way_.push_back(reduce_unit(unit));
  for (Pending& pending : under_way_) finish(&pending);
  under_way_.clear();
  reduced_ = true;
}

void ShardedGradients::restore(uint32_t microbatches) {
  microbatches_ = microbatches;
  // What the caller sets is the sum, of which this worker has its slice, as after a reduction.
  reduced_ = true;
}

}  // namespace tessera::model
