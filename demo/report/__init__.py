# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: answers as they come, tables, a picture, figures as JSON."""
