// The reference implementation, libsentencepiece, behind an interface without its headers: they
// define absl::string_view as std::string_view, which clashes with Abseil's own headers.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace tessera::data {

class SentencePieceOracle {
 public:
  // A model in the bytes of a .model file, trained on `sentences`. Empty if the training failed.
  static std::string train(const std::vector<std::string>& sentences,
                           std::map<std::string, std::string> options);

  explicit SentencePieceOracle(const std::string& model);
  ~SentencePieceOracle();
  bool ok() const;
  std::vector<uint32_t> encode(const std::string& text) const;
  std::string decode(const std::vector<uint32_t>& ids) const;
  uint32_t vocab() const;
  uint32_t end_id() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::data
