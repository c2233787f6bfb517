// A stage as a function: weights, tokens and the boundary tensor from upstream to the boundary
// tensor for downstream, or to the loss. No state, no wire; the engine and the whole model both
// call it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "model/blocks.h"
#include "model/boundary.h"
#include "model/matrix_product.h"
#include "tessera/core/run_spec.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// Told by the pass by hand which unit's weights it is about to read, and on the way forward or back, so that a unit which
// is under way from other GPUs, or was not fetched yet, is there then. Units are counted as the flat vector has them:
// 0 the embedding or receiver, two for each layer (its attention, its feed-forward half), then the sender, or norm and output
// head. Halves, because what comes last in a pass (the first attention's gradient) has nothing to be hidden behind.
enum class PassDirection : uint8_t { kForward, kBackward };
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual void begin(size_t unit, PassDirection direction) = 0;
};

// The layers' matrices as products read them, made when a pass first comes to them. Used by the
// stage's thread.
struct WeightFactors {
  std::map<int64_t, Factor> of;  // by offset in the storage
};

// One version of a stage's weights in the dtype of computation. Never changed after it is made, so
// that microbatches in flight can share it.
struct StageWeights {
  // What autograd takes gradients of: views that tile the flat vector, in order. q, k and v of a
  // layer are one leaf, gate and up another: one matrix product each.
  struct Leaf {
    at::Tensor tensor;
    uint64_t offset = 0;
  };
  std::vector<Leaf> leaves;
  uint64_t version = 0;
  std::shared_ptr<WeightSource> source;  // null: all weights are there
  std::shared_ptr<WeightFactors> factors = std::make_shared<WeightFactors>();
  void begin(size_t unit, PassDirection direction) const {
    if (source) source->begin(unit, direction);
  }
  static size_t attention_unit(size_t layer) { return 2 * layer + 1; }
  static size_t feed_forward_unit(size_t layer) { return 2 * layer + 2; }
  size_t last_unit() const { return 2 * layers.size() + 1; }

  at::Tensor embedding;  // head
  ReceiverWeights receiver;
  std::vector<LayerWeights> layers;
  SenderWeights sender;
  at::Tensor final_norm, output_head;  // tail
};

// Cuts `flat` (which nobody may write to afterwards) into leaves.
StageWeights make_stage_weights(const core::RunSpec& spec, StageIndex stage, const at::Tensor& flat,
                                uint64_t version, bool requires_grad);
// The same from wherever `locate(offset, count)` has those values of the flat vector: [count].
using LocateValues = std::function<at::Tensor(int64_t offset, int64_t count)>;
StageWeights make_stage_weights(const core::RunSpec& spec, StageIndex stage,
                                const LocateValues& locate, uint64_t version, bool requires_grad);

struct StageOutput {
  // In the graph. Below the tail: the boundary tensor z [B, T, r], fp32. At the tail: RMSNorm of
  // the last layer's output [B, T, d].
  at::Tensor value;
  // Below the tail: what the wire encodes, [B, T, r], fp32, detached. For the anchored kind z =
  // RMSNorm(u), and this is u: the encoder normalises by itself, in an order of summation that is
  // the same on every device.
  at::Tensor wire;
};

class StageFunction {
 public:
  StageFunction(const core::RunSpec& spec, StageIndex stage, const at::TensorOptions& compute);

  bool is_head() const { return stage_ == 0; }
  bool is_tail() const { return stage_ + 1 == spec_.pipeline.stages; }

  // tokens: [B, T] int64; boundary: [B, T, r], undefined at the head.
  StageOutput run(const StageWeights& weights, const at::Tensor& tokens,
                  const at::Tensor& boundary) const;

  // The tail's loss from run().value; targets [B, T] int64.
  at::Tensor loss(const StageWeights& weights, const at::Tensor& hidden,
                  const at::Tensor& targets) const;
  // The tail's logits [.., V], fp32.
  at::Tensor logits(const StageWeights& weights, const at::Tensor& hidden) const;

 private:
  at::Tensor layer(const StageWeights& weights, size_t index, const at::Tensor& x,
                   const at::Tensor& iota_input) const;

  core::RunSpec spec_;
  StageIndex stage_ = 0;
  RopeTable rope_;
};

}  // namespace tessera::model
