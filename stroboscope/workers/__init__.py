"""The workers of one service on one host: where they meet, and how they ask each other."""
