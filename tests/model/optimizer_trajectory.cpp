// Runs one of the optimizers over gradients from a file, for optimizer_torch.py:
//   optimizer_trajectory KIND DEVICE STEPS INPUT OUTPUT NAME=SHAPE...
// SHAPE is 61x32 or 5. INPUT: fp32 values, the masters and then one gradient a step (a sum over 3
// microbatches). OUTPUT: the masters, the compute weights as fp32, then the norm of every step.
// Settings are the run's defaults; the learning rate of step i is (i % 5 + 1) / 5 of the default.
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "model/optimizer.h"
#include "tessera/base/status.h"

namespace {

using namespace tessera;

constexpr uint32_t kMicrobatches = 3;

std::vector<ports::TensorLayout> layout_of(char** begin, char** end) {
  std::vector<ports::TensorLayout> layout;
  uint64_t offset = 0;
  for (char** argument = begin; argument != end; ++argument) {
    const std::string text = *argument;
    const size_t equals = text.find('=');
    ports::TensorLayout tensor{text.substr(0, equals), {}, offset, 1};
    std::istringstream sizes(text.substr(equals + 1));
    for (std::string size; std::getline(sizes, size, 'x');) {
      tensor.shape.push_back(std::stoll(size));
      tensor.count *= static_cast<uint64_t>(tensor.shape.back());
    }
    offset += tensor.count;
    layout.push_back(tensor);
  }
  return layout;
}

core::OptimizerKind kind_of(const std::string& name) {
  if (name == "nadam") return core::OptimizerKind::kNAdam;
  return name == "muon" ? core::OptimizerKind::kMuon : core::OptimizerKind::kAdamW;
}

torch::Tensor read_values(std::ifstream* file, int64_t count) {
  torch::Tensor values = torch::empty({count});
  file->read(reinterpret_cast<char*>(values.data_ptr<float>()),
             static_cast<std::streamsize>(count * static_cast<int64_t>(sizeof(float))));
  TESSERA_CHECK(file->good());
  return values;
}

void write_values(std::ofstream* file, const torch::Tensor& values) {
  const torch::Tensor host = values.to(torch::kCPU, torch::kFloat).contiguous();
  file->write(static_cast<const char*>(host.const_data_ptr()),
              static_cast<std::streamsize>(host.nbytes()));
}

}  // namespace

int main(int argc, char** argv) {
  TESSERA_CHECK(argc > 6);
  core::TrainingSpec training;
  training.optimizer = kind_of(argv[1]);
  const torch::Device device(argv[2]);
  const int steps = std::stoi(argv[3]);
  const std::vector<ports::TensorLayout> layout = layout_of(argv + 6, argv + argc);
  const auto count = static_cast<int64_t>(layout.back().offset + layout.back().count);
  std::ifstream input(argv[4], std::ios::binary);
  const torch::Tensor masters = read_values(&input, count).to(device);
  const torch::Tensor weights =
      torch::empty_like(masters, device.is_cuda() ? torch::kBFloat16 : torch::kFloat);
  const auto optimizer = model::make_optimizer(training, layout, device);
  std::vector<float> norms;
  for (int step = 0; step < steps; ++step) {
    const torch::Tensor gradient = read_values(&input, count).to(device);
    const double learning_rate = training.learning_rate * (step % 5 + 1) / 5;
    const StatusOr<double> norm =
        optimizer->step(masters, gradient, kMicrobatches, learning_rate, weights);
    TESSERA_CHECK(norm.ok());
    norms.push_back(static_cast<float>(*norm));
  }
  std::ofstream output(argv[5], std::ios::binary);
  write_values(&output, masters);
  write_values(&output, weights);
  write_values(&output, torch::tensor(torch::ArrayRef<float>(norms)));
  return output.good() ? 0 : 1;
}
