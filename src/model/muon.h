// Muon (Jordan et al. 2024, as torch.optim.Muon computes it) over matrices in the flat vector: the
// Nesterov momentum of a matrix, made nearly orthogonal, is its update.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/optimizer_passes.h"
#include "tessera/base/status.h"
#include "tessera/kernels/optimizer.h"
#include "tessera/ports/stage_engine.h"

namespace tessera::model {

// Five quintic Newton-Schulz iterations on a stack [n, rows, columns] of matrices, each first
// divided by its Frobenius norm: singular values go to about 1 (0.7 to 1.2), singular vectors stay.
// Computes in the stack's dtype, on the smaller side. May use the stack's memory.
at::Tensor newton_schulz(at::Tensor stack);

// The two passes over memory before and after it, on the device of the pointers (CUDA: the current
// stream; a CPU: all of torch's threads).
enum class MuonHalf { kMomentum, kApply };
Status run_muon(MuonHalf half, const kernels::MuonParams& params, const at::Device& device);
// `stack`: fp32 or bf16.
void set_muon_stack(const at::Tensor& stack, kernels::MuonParams* params);

struct MuonConstants {
  double momentum = 0;
  double learning_rate = 0;  // times sqrt(max(1, rows / columns)) of a matrix
  double weight_decay = 0;
};

// Matrices of one shape are stacked, so that their products are batched. Used by one thread.
class MuonPass {
 public:
  // `matrices`: of two dimensions. `pieces`: as make_optimizer() has them.
  MuonPass(const std::vector<ports::TensorLayout>& matrices, const std::vector<int64_t>& pieces,
           const at::Device& device);

  // `momentum`: flat, like the masters. The update is computed in bf16 on CUDA and in fp32 on a
  // CPU.
  Status enqueue(const StepTensors& tensors, const at::Tensor& momentum,
                 const MuonConstants& constants, const kernels::GradientNorm* norm) const;

 private:
  // Matrices of one shape, as many as one stack takes.
  struct Stack {
    int64_t rows = 0;
    int64_t columns = 0;
    at::Tensor offsets;           // [n], int64: where each begins in the flat vector
    at::Tensor pieces;            // [n], int32: which piece of the gradient has it, if there are pieces,
    at::Tensor gradient_offsets;  // [n], int64: and where in it
  };
  std::vector<Stack> stacks_;
};

}  // namespace tessera::model
