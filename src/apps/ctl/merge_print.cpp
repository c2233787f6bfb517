#include "merge_print.h"

#include <fmt/format.h>

namespace tessera::apps {

void print_merges(const nlohmann::json& merges) {
  fmt::print("{:>10} {:>12} {:>7} {:>10} {:>9} {:>8}\n", "merge", "participants", "shards", "recomputed", "both lost",
             "verdicts");
  for (const auto& merge : merges) {
    fmt::print("{:>10} {:>12} {:>7} {:>10} {:>9} {:>8}\n", merge["id"].get<std::string>(), merge["participants"].size(),
               merge["shards"].get<uint32_t>(), merge["recomputed"].get<uint32_t>(),
               merge["lost_without_rescue"].get<uint32_t>(), merge["verdicts"].size());
  }
}

void print_merge(const nlohmann::json& merge) {
  fmt::print("merge {}: {} participants, {} shards, {} recomputed\n", merge["id"].get<std::string>(),
             merge["participants"].size(), merge["shards"].get<uint32_t>(), merge["recomputed"].get<uint32_t>());
  fmt::print("{:>6} {:>8} {:>10} {:>7}  = agreed  X wrong  - missing  u called an upload unreadable\n", "miner", "counted",
             "norm", "cosine");
  for (size_t p = 0; p < merge["participants"].size(); ++p) {
    fmt::print("{:>6} {:>8} {:>10.4g} {:>7.3f}  {}\n", merge["participants"][p].get<uint32_t>(),
               merge["microbatches"][p].get<uint32_t>(), merge["norms"][p].get<double>(), merge["cosines"][p].get<double>(),
               merge["matrix"][p].get<std::string>());
  }
  for (const auto& verdict : merge["verdicts"]) {
    fmt::print("miner {}: {}", verdict["miner"].get<uint32_t>(), verdict["fault"].get<std::string>());
    if (verdict["block_count"].get<uint64_t>() > 0) {
      fmt::print(", blocks {} to {}: committed {}, the uploads give {}", verdict["first_block"].get<uint64_t>(),
                 verdict["first_block"].get<uint64_t>() + verdict["block_count"].get<uint64_t>() - 1,
                 verdict["committed"].get<std::string>().substr(0, 12), verdict["expected"].get<std::string>().substr(0, 12));
    } else if (verdict["bound"].get<double>() != 0) {
      fmt::print(" {:.4g}, the bound is {:.4g}", verdict["measure"].get<double>(), verdict["bound"].get<double>());
    }
    fmt::print("\n");
  }
}

}  // namespace tessera::apps
