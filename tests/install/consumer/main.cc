// A program of a user of the library.
#include <iostream>
#include <nibble/nibble.hpp>

int main() { std::cout << "nibble " << nibble::version() << "\n"; }
