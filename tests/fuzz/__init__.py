"""Tries thousands of broken inputs on the commands, each in a fork of one warm process, and judges the outcome."""
