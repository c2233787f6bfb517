#include "tessera/base/log.h"

#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>
#include <vector>

namespace tessera {

void start_logging(const LogOptions& options) {
  std::vector<spdlog::sink_ptr> sinks;
  std::string problem;
  if (!options.file.empty()) {
    try {
      sinks.push_back(std::make_shared<spdlog::sinks::rotating_file_sink_mt>(options.file,
                                                                             options.file_bytes, 2));
    } catch (const spdlog::spdlog_ex& failure) {
      problem = failure.what();
    }
  }
  if (options.to_stderr || sinks.empty()) {
    sinks.push_back(std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  }
  auto logger = std::make_shared<spdlog::logger>(options.name, sinks.begin(), sinks.end());
  // spdlog reads an unknown name as "off": a misspelt level would silence the program.
  spdlog::level::level_enum level = spdlog::level::from_str(options.level);
  const bool unknown_level = level == spdlog::level::off && options.level != "off";
  if (unknown_level) level = spdlog::level::info;
  logger->set_level(level);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %n: %v");
  logger->flush_on(spdlog::level::warn);
  spdlog::set_default_logger(std::move(logger));
  spdlog::flush_every(std::chrono::seconds(1));
  if (!problem.empty()) spdlog::warn("logging to stderr: {}", problem);
  if (unknown_level) {
    spdlog::warn("log level '{}' is unknown, using info; use trace, debug, info, warn, error or off",
                 options.level);
  }
}

}  // namespace tessera
