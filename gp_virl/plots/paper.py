"""The paper's tasks, what it measures on them, and its numbers."""

# In the order of the paper's columns.
TASKS = {"gp_l": "GP-L", "virl_l": "V-IRL-L", "gp_vl": "GP-VL", "virl_vl": "V-IRL-VL"}
# What figures 5 and 6 show of each task; figures 1, 7 and 18 show success of all.
METRICS = {"gp_l": "success", "virl_l": "per_step", "gp_vl": "success", "virl_vl": "per_step"}
# In % by Llama-3.2-Vision-11B (figures 6 and 7). On other looks V-IRL-VL is success on 18 routes.
PAPER = {
    ("gp_l", "rule_ood"): {"init": 11.5, "rl": 15.0, "sft": 3.4},
    ("virl_l", "rule_ood"): {"init": 80.8, "rl": 91.8, "sft": 1.3},
    ("gp_vl", "rule_ood"): {"init": 11.2, "rl": 14.2, "sft": 5.6},
    ("virl_vl", "rule_ood"): {"init": 35.7, "rl": 45.0, "sft": 2.5},
    ("gp_vl", "visual_ood"): {"init": 23.6, "rl": 41.2, "sft": 13.7},
    ("virl_vl", "visual_ood"): {"init": 16.7, "rl": 77.8, "sft": 11.1},
}
# Best success in % before the paper, on the same routes and photographs (figure 7).
PRIOR_BEST = {("virl_vl", "visual_ood"): 44.0}
