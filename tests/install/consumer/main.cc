// A program of a user of the library: loads a model, answers, and checks that it does so twice
// alike.
#include <iostream>
#include <nibble/nibble.hpp>

int main(int argc, char** argv) {
  std::cout << "nibble " << nibble::version() << "\n";
  try {
    nibble::LanguageModel model(argc > 1 ? argv[1] : "no-such-model");
    const std::vector<float> a = model.logits({1, 2, 3}), b = model.logits({1, 2, 3});
    std::cout << a.size() / 3 << " logits a position\n";
    return a == b && static_cast<std::int64_t>(a.size()) == 3 * model.vocab() ? 0 : 1;
  } catch (const std::runtime_error& e) {
    std::cout << "refused: " << e.what() << "\n";
    return argc > 1 ? 1 : 0;
  }
}
