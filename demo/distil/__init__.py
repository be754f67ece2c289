# SPDX-License-Identifier: Apache-2.0
"""How the table of n-grams was made of the model's own answers."""
