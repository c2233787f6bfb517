// What a miner needs of a stage. The product's engine is LibTorch (src/model/stage_engine.cpp); tests have a fake one.
// One thread uses an engine. No exception leaves it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/core/run_spec.h"
#include "tessera/core/stage_layout.h"
#include "tessera/core/stage_state.h"

namespace tessera::ports {

using core::BoundaryPayload;
using core::LocalState;
using core::MicrobatchKey;
using core::TensorLayout;
using core::WeightVersion;

struct ForwardResult {
  BoundaryPayload output;       // empty at the tail
  double loss = 0;              // mean cross-entropy per token in nats, at the tail
  uint64_t weight_version = 0;
};

struct BackwardResult {
  BoundaryPayload input_gradient;  // empty at the head
  uint64_t weight_version = 0;     // of the weights the gradient was taken at: always the forward's
};

struct StepResult {
  double gradient_norm = 0;  // before clipping
  uint64_t weight_version = 0;
};

using InputGradientReady = std::function<void(BoundaryPayload)>;

class StageEngine {
 public:
  virtual ~StageEngine() = default;

  virtual const std::vector<TensorLayout>& layout() const = 0;
  virtual uint64_t value_count() const = 0;

  // `tokens`: B * (T + 1) ids, batch major; `input`: the boundary tensor from upstream, empty at the head.
  // Keeps what the backward pass needs, and the weights it used, until backward() or discard().
  virtual StatusOr<ForwardResult> forward(const MicrobatchKey& key, const std::vector<uint32_t>& tokens,
                                          const BoundaryPayload& input) = 0;
  // `output_gradient`: from downstream, empty at the tail. `accumulate`: add this microbatch's weight gradient to the
  // accumulator (else only the input gradient is computed). `input_gradient_ready` is called at most once, before
  // backward() returns, with the input gradient as soon as it is on the host: it can be sent while the weight gradients
  // are still computed. The result's input gradient is empty then.
  virtual StatusOr<BackwardResult> backward(const MicrobatchKey& key,
                                            const BoundaryPayload& output_gradient,
                                            bool accumulate,
                                            const InputGradientReady& input_gradient_ready = {}) = 0;
  virtual void discard(const MicrobatchKey& key) = 0;

  // One optimizer step with the mean of the accumulated gradients. In-flight microbatches keep the weights they used.
  virtual StatusOr<StepResult> step(double learning_rate) = 0;
  virtual uint32_t accumulated_microbatches() const = 0;
  virtual uint64_t weight_version() const = 0;

  // The fp32 masters. set_masters() makes a new weight version; the accumulated gradient stays.
  virtual std::vector<float> masters() = 0;
  virtual Status set_masters(const std::vector<float>& values) = 0;

  virtual LocalState export_state() = 0;
  virtual Status import_state(const LocalState& state) = 0;

  // The weights that microbatches in flight still use, without the newest, by version. UNIMPLEMENTED where they can't be had:
  // such an engine's work can't be audited.
  virtual StatusOr<std::vector<WeightVersion>> older_weights() {
    return error(absl::StatusCode::kUnimplemented, "this engine does not give its older weights");
  }
};

}  // namespace tessera::ports
