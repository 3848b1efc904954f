"""Exams: the held-out questions that layers carry, put to a stack, scored and compared in pairs.

tasks: an exam and its questions.  examinee: what a stack must be able to do.  scorers: one file
a scorer.  runner: questions to results.  statistics: intervals and paired tests.  report: scores,
comparisons and the matrix.
"""
