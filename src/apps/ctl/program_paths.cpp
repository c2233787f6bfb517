#include "program_paths.h"

#include <filesystem>

namespace tessera::apps {

StatusOr<std::string> sibling_program(const std::string& program) {
  std::error_code code;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", code);
  const std::filesystem::path path = self.parent_path() / program;
  if (code || !std::filesystem::exists(path)) {
    return not_found("{} is not beside tesseractl ({}); build it: cmake --build --preset release", program,
                     self.parent_path().string());
  }
  return path.string();
}

}  // namespace tessera::apps
