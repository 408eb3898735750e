"""gp_virl: does post-training memorize or generalize? (after arXiv 2501.17161)"""
