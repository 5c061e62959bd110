// Stop strings in a stream of text: what might be the start of one is held back until it is
// decided, so that no part of a stop string is ever printed.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);  // UsageError when one is empty
  // Text that is safe to print now. The stop string that is complete first wins (the longest of
  // those complete at once), however the text is cut into pushes; after it nothing comes out.
  std::string push(std::string_view text);
  std::string flush();  // what is held back, when the text ends without a stop string
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace nibble
