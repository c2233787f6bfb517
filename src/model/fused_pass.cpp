// A stage by hand: the trunk's layers, the tail's loss and the boundaries, each with its own
// backward pass.
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <utility>
#include <vector>

#include "model/stage_pass.h"
#include "model/tail_loss.h"

namespace tessera::model {
namespace {

using core::BoundaryKind;
using core::Recompute;

// A small piece of the stage that autograd differentiates: the residual boundary's perceptrons.
struct GraphPiece {
  at::Tensor input;  // leaf
  at::Tensor output;
};

class FusedState final : public PassState {
 public:
  std::shared_ptr<const StageWeights> weights;
  at::Tensor ids, targets;  // [N] int32
  at::Tensor boundary;      // [N, r] of the compute type; undefined at the head
  bool complete = false;    // false: only what is above; the forward pass is run again

  GraphPiece receiver;
  at::Tensor channel;     // anchored
  at::Tensor anchor_low;  // anchored, factorised: the rows of the low-rank table
  AnchorResult anchor;
  std::vector<LayerState> layers;
  at::Tensor last;  // the last layer's output, where the sender needs it
  NormResult sender_norm;
  at::Tensor code;  // anchored: u, fp32
  NormResult code_norm;
  GraphPiece sender;
  TailState tail;
};

class FusedPass final : public StagePass {
 public:
  FusedPass(const core::RunSpec& spec, StageIndex stage, const at::TensorOptions& compute,
            const FusedPassOptions& options)
      : spec_(spec),
        stage_(stage),
        compute_(compute),
        options_(options),
        recompute_(spec.training.recompute),
        epsilon_(spec.model.norm_epsilon),
        trunk_(spec, compute.device(), compute.dtype().toScalarType(),
               spec.training.deterministic) {
    TORCH_CHECK(spec.boundary.kind != BoundaryKind::kIota || spec.pipeline.stages == 1,
                "the iota boundary goes through autograd");
  }

  PassOutput forward(const PassInput& input) override;
  at::Tensor backward(std::unique_ptr<PassState> held, const at::Tensor& outer,
                      GradientSink* sink) override;

 private:
  bool is_head() const { return stage_ == 0; }
  bool is_tail() const { return stage_ + 1 == spec_.pipeline.stages; }
  BoundaryKind kind() const { return spec_.boundary.kind; }
  TailWeights tail_weights(const StageWeights& weights) const {
    return {weights.final_norm, weights.output_head};
  }

  // What the stage answers; `state` gets what backward() needs, or stays incomplete if `keep` is
  // false.
  PassOutput run(FusedState* state, bool keep);
  at::Tensor receive(FusedState* state, bool keep);
  at::Tensor receive_anchored(FusedState* state, bool keep);
  at::Tensor send(FusedState* state, const at::Tensor& x, bool keep);
  at::Tensor send_backward(FusedState* state, const at::Tensor& outer, GradientSink* sink);
  at::Tensor receive_backward(FusedState* state, const at::Tensor& dx, GradientSink* sink);
  at::Tensor anchored_backward(FusedState* state, const at::Tensor& dx, GradientSink* sink);
  void embedding_gradient(const at::Tensor& table, const at::Tensor& ids, const at::Tensor& dy,
                          bool normalise, GradientSink* sink) const;
  at::Tensor rows(const at::Tensor& boundary) const {
    return boundary.reshape({-1, boundary.size(-1)});
  }
  at::Tensor batched(const at::Tensor& rows) const {
    return rows.view({spec_.training.microbatch_size, spec_.model.context, rows.size(1)});
  }

  const core::RunSpec spec_;
  const StageIndex stage_;
  const at::TensorOptions compute_;
  const FusedPassOptions options_;
  const Recompute recompute_;
  const double epsilon_;
  Trunk trunk_;
};

// Differentiates a piece and hands its weights' gradients on.
at::Tensor piece_backward(const GraphPiece& piece, const std::vector<at::Tensor>& weights,
                          const at::Tensor& outer, GradientSink* sink) {
  std::vector<at::Tensor> inputs{piece.input};
  if (sink->wanted()) inputs.insert(inputs.end(), weights.begin(), weights.end());
  const std::vector<at::Tensor> gradients =
      torch::autograd::grad({piece.output}, inputs, {outer.to(piece.output.scalar_type())});
  for (size_t i = 1; i < gradients.size(); ++i) {
    sink->target(weights[i - 1]).take(gradients[i].contiguous());
  }
  return gradients[0];
}

at::Tensor FusedPass::receive(FusedState* state, bool keep) {
  const StageWeights& weights = *state->weights;
  if (is_head()) return embed(weights.embedding, state->ids, spec_.model.embedding_norm, epsilon_);
  if (kind() == BoundaryKind::kNone) return state->boundary;
  if (kind() == BoundaryKind::kAnchored) return receive_anchored(state, keep);
  const c10::AutoGradMode with_graph(keep);
  const at::Tensor input = state->boundary.detach().requires_grad_(keep);
  const at::Tensor output = decode_boundary(input, {}, weights.receiver, spec_);
  if (keep) state->receiver = {input, output};
  return output.detach();
}

at::Tensor FusedPass::receive_anchored(FusedState* state, bool keep) {
  const ReceiverWeights& weights = state->weights->receiver;
  const at::Tensor channel = at::mm(state->boundary, weights.decoder.t());
  at::Tensor table = weights.anchor, ids = state->ids, low;
  if (weights.anchor_basis.defined()) {
    low = embed(weights.anchor, state->ids, /*normalise=*/false, epsilon_);
    table = at::mm(low, weights.anchor_basis);
    ids.reset();
  }
  AnchorResult result = anchor_forward(table, ids, channel, weights.gain, state->boundary.size(1), epsilon_);
  const at::Tensor y = result.y;
  if (keep) {
    state->channel = channel;
    state->anchor_low = low;
    state->anchor = std::move(result);
    state->anchor.y.reset();
  }
  return y;
}

at::Tensor FusedPass::send(FusedState* state, const at::Tensor& x, bool keep) {
  const SenderWeights& weights = state->weights->sender;
  if (kind() == BoundaryKind::kNone) return x;
  if (kind() == BoundaryKind::kAnchored) {
    NormResult norm = norm_forward(x, {}, epsilon_);
    const at::Tensor code = at::mm(norm.y, weights.encoder.t()).to(at::kFloat);
    if (keep) {
      state->last = x;
      state->sender_norm = std::move(norm);
      state->code = code;
      state->code_norm = norm_forward(code, {}, epsilon_);
    }
    return code;
  }
  const c10::AutoGradMode with_graph(keep);
  const at::Tensor input = x.detach().requires_grad_(keep);
  const at::Tensor output = encode_boundary(input, weights, spec_).to(at::kFloat);
  if (keep) state->sender = {input, output};
  return output.detach().contiguous();
}

PassOutput FusedPass::run(FusedState* state, bool keep) {
  state->complete = keep;
  const StageWeights& weights = *state->weights;
  weights.begin(0, PassDirection::kForward);
  at::Tensor x = receive(state, keep);
  x = trunk_.forward(weights, std::move(x), recompute_ == Recompute::kBlock,
                     keep ? &state->layers : nullptr);
  weights.begin(weights.last_unit(), PassDirection::kForward);
  PassOutput output;
  if (is_tail()) {
    output.loss = tail_forward(tail_weights(weights), x, state->targets, epsilon_, options_.loss_share,
                               &trunk_.product(), keep ? &state->tail : nullptr);
  } else {
    output.wire = batched(send(state, x, keep));
  }
  return output;
}

PassOutput FusedPass::forward(const PassInput& input) {
  const c10::NoGradGuard no_graph;
  auto state = std::make_unique<FusedState>();
  state->weights = input.weights;
  const int64_t context = input.ids.size(1) - 1;
  const auto flat = [&](int64_t first) {
    return input.ids.narrow(1, first, context).reshape({-1}).to(at::kInt);
  };
  state->ids = flat(0);
  if (is_tail()) state->targets = flat(1);
  if (!is_head()) state->boundary = rows(input.boundary).to(compute_.dtype());
  PassOutput output = run(state.get(), recompute_ != Recompute::kFull);
  output.state = std::move(state);
  return output;
}

at::Tensor FusedPass::send_backward(FusedState* state, const at::Tensor& outer,
                                    GradientSink* sink) {
  const SenderWeights& weights = state->weights->sender;
  const at::Tensor gradient = rows(outer);
  if (kind() == BoundaryKind::kNone) return gradient.to(compute_.dtype());
  if (kind() == BoundaryKind::kResidual) {
    return piece_backward(state->sender, {weights.encoder_in, weights.encoder_out}, gradient,
                          sink).contiguous();
  }
  const at::Tensor dcode = gradient.clone();
  norm_backward(dcode, state->code_norm, state->code, {}, {}, {});
  const at::Tensor narrow = dcode.to(compute_.dtype());
  if (sink->wanted()) {
    sink->target(weights.encoder).take(at::mm(narrow.t(), state->sender_norm.y));
  }
  const at::Tensor dx = at::mm(narrow, weights.encoder.detach());
  norm_backward(dx, state->sender_norm, state->last, {}, {}, {});
  return dx;
}

void FusedPass::embedding_gradient(const at::Tensor& table, const at::Tensor& ids,
                                   const at::Tensor& dy, bool normalise,
                                   GradientSink* sink) const {
  const GradientTarget target = sink->target(table);
  if (!target.tensor.defined()) return;
  if (!target.accumulate) target.tensor.zero_();
  embed_backward(table, ids, dy, normalise, epsilon_, target.tensor);
}

at::Tensor FusedPass::anchored_backward(FusedState* state, const at::Tensor& dx,
                                        GradientSink* sink) {
  const ReceiverWeights& weights = state->weights->receiver;
  anchor_backward(dx, state->anchor, state->channel, weights.gain, state->boundary.size(1),
                  sink->target(weights.gain));
  const at::Tensor& dchannel = state->channel;
  const at::Tensor dz = at::mm(dchannel, weights.decoder.detach());
  if (!sink->wanted()) return dz;
  // The boundary's gradient is complete: the rest can wait until it is on its way.
  sink->defer([this, sink, dx, dchannel, weights, ids = state->ids, low = state->anchor_low,
               z = state->boundary] {
    sink->target(weights.decoder).take(at::mm(dchannel.t(), z));
    if (!low.defined()) {
      embedding_gradient(weights.anchor, ids, dx, /*normalise=*/false, sink);
      return;
    }
    sink->target(weights.anchor_basis).take(at::mm(low.t(), dx));
    embedding_gradient(weights.anchor, ids, at::mm(dx, weights.anchor_basis.detach().t()),
                       /*normalise=*/false, sink);
  });
  return dz;
}

at::Tensor FusedPass::receive_backward(FusedState* state, const at::Tensor& dx,
                                       GradientSink* sink) {
  const StageWeights& weights = *state->weights;
  if (is_head()) {
    embedding_gradient(weights.embedding, state->ids, dx, spec_.model.embedding_norm, sink);
    return {};
  }
  at::Tensor dz = dx;
  if (kind() == BoundaryKind::kAnchored) dz = anchored_backward(state, dx, sink);
  if (kind() == BoundaryKind::kResidual) {
    dz = piece_backward(state->receiver,
                        {weights.receiver.decoder_in, weights.receiver.decoder_out}, dx, sink);
  }
  return batched(dz.contiguous());
}

at::Tensor FusedPass::backward(std::unique_ptr<PassState> held, const at::Tensor& outer,
                               GradientSink* sink) {
  const c10::NoGradGuard no_graph;
  const std::unique_ptr<FusedState> state(static_cast<FusedState*>(held.release()));
  if (is_head() && !sink->wanted()) return {};
  if (!state->complete) run(state.get(), /*keep=*/true);
  const StageWeights& weights = *state->weights;
  weights.begin(weights.last_unit(), PassDirection::kBackward);
  sink->begin(weights.last_unit());
  at::Tensor dx = is_tail() ? tail_backward(tail_weights(weights),
                                            std::exchange(state->tail, {}), sink)
                            : send_backward(state.get(), outer, sink);
  sink->end(weights.last_unit());
  state->last.reset();
  state->sender_norm = {};
  // Weight gradients that wait until dX is on its way hold every layer's tensors until then. The
  // head sends nothing, and recomputation by block is there for memory: they free it at once.
  const bool by_block = recompute_ == Recompute::kBlock;
  dx = trunk_.backward(weights, &state->layers, std::move(dx), by_block,
                       /*defer=*/options_.defer && !is_head() && !by_block, sink);
  weights.begin(0, PassDirection::kBackward);
  sink->begin(0);
  dx = receive_backward(state.get(), dx, sink);
  sink->end(0);
  return dx;
}

}  // namespace

std::unique_ptr<StagePass> make_fused_pass(const core::RunSpec& spec, StageIndex stage,
                                           const at::TensorOptions& compute,
                                           const FusedPassOptions& options) {
  return std::make_unique<FusedPass>(spec, stage, compute, options);
}

int64_t weight_padding(const core::RunSpec& spec, StageIndex stage) {
  if (stage + 1 < spec.pipeline.stages) return 0;
  const int64_t vocabulary = spec.model.vocab;
  const int64_t rows =
      (vocabulary + kVocabularyPiece - 1) / kVocabularyPiece * kVocabularyPiece - vocabulary;
  return rows * spec.model.width;
}

}  // namespace tessera::model
