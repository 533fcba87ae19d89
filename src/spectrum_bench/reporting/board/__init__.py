"""The leaderboard, a page of all rows below results/: `read.py` reads them, `chance.py` compares, `page.py` writes."""
