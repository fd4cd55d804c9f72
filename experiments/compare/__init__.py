"""Does PPO beat the alternatives? Arms that write openers for the same held-out scenes, measured in the same way.

arms.py      which arms there are, the runs behind them, and what makes them not comparable
openers.py   what each arm writes, as rows: scores, KL, length and the rest, kept in rows.parquet
texts.py     what is measured on a text alone, or on a set of texts
numbers.py   best-of-n from one pool, intervals, gains at equal length, the curves of over-optimisation
table.py     rows -> estimates with intervals -> table.md, table.csv
figures.py   frontier.png, seeds.png
verdict.py   estimates -> words, no stronger than they are
"""
