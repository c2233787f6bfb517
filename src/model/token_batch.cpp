#include "model/token_batch.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace tessera::model {

Status check_tokens(const std::vector<uint32_t>& tokens, uint32_t vocab) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < vocab) continue;
    return invalid_argument(
        "token {} of the batch is {}, but model.vocab is {}; the data were made with another "
        "tokenizer",
        i, tokens[i], vocab);
  }
  return ok_status();
}

at::Tensor token_tensor(const std::vector<uint32_t>& tokens, int64_t row,
                        const at::Device& device) {
  const int64_t rows = static_cast<int64_t>(tokens.size()) / row;
  at::Tensor host = at::empty({rows, row}, at::TensorOptions().dtype(at::kLong));
  std::copy(tokens.begin(), tokens.end(), host.data_ptr<int64_t>());
  return host.to(device);
}

}  // namespace tessera::model
