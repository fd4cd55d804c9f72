"""Does PPO beat the alternatives? Arms that write openers for the same held-out scenes, measured in the same way.

arms.py      which arms there are, the runs behind them, and what makes them not comparable
openers.py   what each arm writes, as rows: scores, KL, length and the rest, kept in rows.parquet
talks.py     their conversations with the simulated person, kept in talks.parquet
judged.py    a judge model's opinion of them beside SFT's, where one is set
texts.py     what is measured on a text alone, or on a set of texts
numbers.py   best-of-n from one pool, intervals, gains at equal length, the curves of over-optimisation
table.py     rows -> estimates with intervals -> table.md, table.csv
figures.py   frontier.png, seeds.png
goals.py     what PPO is to reach, met or missed
summary.py   the measures that decide, and the goals -> summary.md, which README shows
verdict.py   estimates -> words, no stronger than they are
report.py    all of it -> report.html, with openers side by side; its template, style and script beside it
"""
